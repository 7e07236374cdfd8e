"""The names that the product uses from TensorRT, read from its sources.

    module_names("trt", "_trt")     # {"BuilderFlag.STRIP_PLAN", ...}: attributes of the module, under any variable
    member_names(kinds)             # {"set_flag", ...}: attributes of objects that these real classes have

In the sources the module is called `trt` or `_trt`, and its plugin module `trtp`.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("plugins", "runtime", "models", "export", "evaluation", "src/dpad/commands")
# Names of TensorRT's members that in these sources belong to lists, memory views, files or the project's classes.
_OURS = {"append", "attention", "axes", "clear", "data", "dtype", "extend", "file", "flags", "log", "logger", "name"}
_OURS |= {"nbytes", "pop", "read", "shape", "type", "update", "weights", "write"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """The source files that use the module under one of its names."""
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        if {"trt", "_trt", "trtp"} & {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}:
            yield path, tree


def module_names(*modules: str) -> set[str]:
    """Attributes of `modules`, and attributes of a variable that holds one of them (`kinds = trt.BuilderFlag`)."""
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
    """The name, such as `BuilderFlag.REFIT`, of an attribute of something known, or of one in hasattr or getattr."""
    owner, name = getattr(node, "value", None), getattr(node, "attr", None)
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
        owner, name = node.args[0], getattr(node.args[1], "value", None)
    if not isinstance(name, str):
        return ""
    text = ast.unparse(owner).removeprefix("self.") if isinstance(owner, ast.expr) else ""
    inner = known[text] if text in known else _asked(owner, known) + "." if isinstance(owner, ast.AST) else "."
    return "" if inner == "." else inner + name


def member_names(kinds: Iterable[type]) -> set[str]:
    """Attributes in these files that a class of TensorRT has too, except in plugins, which the real interface tests."""
    theirs = {name for kind in kinds for name in vars(kind) if not name.startswith("_") and not name.isupper()}
    trees = [tree for path, tree in sources() if path.name != "trt_face.py"]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & theirs - _OURS
