"""The usage lines in module docstrings call existing functions with valid arguments."""

import ast
import inspect
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("plugins", "runtime", "models", "export", "evaluation", "serving")
TREES = {
    ".".join(("dpad", *path.relative_to(ROOT).with_suffix("").parts)): ast.parse(path.read_text())
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
DEFINED = Counter(part.name for tree in TREES.values() for part in tree.body if hasattr(part, "name"))


def usage(name: str) -> Iterator[ast.Call]:
    """The calls in paragraphs of a docstring that are Python, except calls with `...` for arguments."""
    for paragraph in (ast.get_docstring(TREES[name], clean=False) or "").split("\n\n")[1:]:
        try:
            nodes = list(ast.walk(ast.parse(dedent(paragraph))))
        except SyntaxError:  # prose, a table, a tree, or a shell command
            continue
        yield from (n for n in nodes if isinstance(n, ast.Call) and "..." not in map(ast.unparse, n.args))


def signature(name: str, function: ast.expr) -> inspect.Signature | None:
    """The signature of a called function.

    `f` and `f.part` are looked up in the module, or in the only module that defines them; `x.f` is the module's only
    method `f`. None if nothing is found, or for an exception, which takes any arguments.
    """
    module, (first, *rest) = import_module(name), ast.unparse(function).split(".")
    if not hasattr(module, first) and DEFINED[first] == 1:
        module = import_module(next(n for n, t in TREES.items() if first in [getattr(p, "name", "") for p in t.body]))
    if hasattr(module, first):
        found = reduce(lambda whole, part: getattr(whole, part, None), rest, getattr(module, first))
        if found is not None:  # otherwise it is a variable with the name of a function elsewhere
            return signature_of(found)
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == name]
    methods = [vars(kind)[rest[0]] for kind in kinds if len(rest) == 1 and rest[0] in vars(kind)]
    return inspect.signature(methods[0].__get__(object(), object)) if len(methods) == 1 else None


def signature_of(found: Any) -> inspect.Signature | None:
    """The signature of an object; None for an exception, and for C code without a signature."""
    if inspect.isclass(found) and issubclass(found, Exception):
        return None
    try:
        return inspect.signature(found)
    except ValueError:
        return None


@pytest.mark.parametrize("name", [name for name in TREES if any(usage(name))])
def test_usage_binds(name: str) -> None:
    """Fails if a usage line omits a required argument, or passes one that does not exist."""
    for call in usage(name):
        if (taken := signature(name, call.func)) is not None:
            try:
                taken.bind(*call.args, **{str(word.arg): word.value for word in call.keywords})
            except TypeError as error:
                pytest.fail(f"{ast.unparse(call)}: {error}", pytrace=False)
