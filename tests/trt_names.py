"""The names that the product uses from TensorRT, read from its sources.

    module_names("trt", "_trt")     # {"BuilderFlag.STRIP_PLAN", ...}: what is asked of the module, by whatever name
    member_names(kinds)             # {"set_flag", ...}: what is asked of objects, as far as these real classes have it

The sources call the module `trt` or `_trt`, and its module of plugins `trtp`.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("plugins", "runtime", "models", "export", "evaluation", "src/dpad/commands")
# Members of TensorRT's classes that in these sources are those of lists, memory views, files and the project's own.
_OURS = {"append", "attention", "axes", "clear", "data", "dtype", "extend", "file", "flags", "log", "logger", "name"}
_OURS |= {"nbytes", "pop", "read", "shape", "type", "update", "weights", "write"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Files that have the module under one of its names."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        if {"trt", "_trt", "trtp"} & {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}:
            yield path, tree


def module_names(*modules: str) -> set[str]:
    """Attributes of `modules`, and those of an attribute that a function gives a name (`kinds = trt.BuilderFlag`)."""
    found = set()
    for _, tree in sources():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                known = dict.fromkeys(modules, "") | dict(_given(function, dict.fromkeys(modules, "")))
                found |= {name for node in ast.walk(function) if (name := _asked(node, known))}
    return {name for name in found if "__" not in name}


def _given(function: ast.FunctionDef, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            sides = [node.targets[0]], [node.value]
            if isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple):
                sides = node.targets[0].elts, node.value.elts
            for target, value in zip(*sides):
                if isinstance(target, ast.Name) and (name := _asked(value, known)):
                    yield target.id, f"{name}."


def _asked(node: ast.AST, known: dict[str, str]) -> str:
    """`BuilderFlag.REFIT` of an attribute of something known, or of one that hasattr or getattr is asked for."""
    owner, name = getattr(node, "value", None), getattr(node, "attr", None)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
        owner, name = node.args[0], getattr(node.args[1], "value", None)
    if not isinstance(name, str):
        return ""
    text = ast.unparse(owner).removeprefix("self.") if isinstance(owner, ast.expr) else ""
    inner = known[text] if text in known else _asked(owner, known) + "." if isinstance(owner, ast.AST) else "."
    return "" if inner == "." else inner + name


def member_names(kinds: Iterable[type]) -> set[str]:
    """Attributes of anything in these files that a class of TensorRT has too; plugins are run by the real interface."""
    theirs = {name for kind in kinds for name in vars(kind) if not name.startswith("_") and not name.isupper()}
    trees = [tree for path, tree in sources() if path.name != "trt_face.py"]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & theirs - _OURS
