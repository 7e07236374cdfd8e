"""Reads the valid calls of a pybind11 function from its docstring.

    overloads(trt.Builder.create_network)        # [(self: Builder, flags: typing.SupportsInt = ...)]
    bind(trt.Builder.create_network, 1)          # raises TypeError if no overload takes it

Arguments are compared by name, number and type, as pybind11 does before it calls C++.
"""

import ast
import enum
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

_Parameter = inspect.Parameter


def overloads(function: Any) -> list[inspect.Signature]:
    """The signatures at the beginning of a docstring; of an annotation only the last part is kept, such as `Dims`."""
    return _read(inspect.getdoc(function) or "")


@cache
def _read(docstring: str) -> list[inspect.Signature]:
    lines = docstring.splitlines()
    found = [re.match(r"(?:\d+\. )?(\w*)(\(.*\) -> .*)", line.strip()) for line in lines]
    return [_parsed(match[2]) for match in found if match and "*args" not in match[2]]


def _parsed(text: str) -> inspect.Signature:
    """Parse a signature such as `(self: a.B, x: c::D = <E.F: 0>) -> g.H`."""
    plain = re.sub(r"<[^<>]*>", "...", text.replace("::", "."))
    [function] = ast.parse(f"def f{plain}: ...").body
    assert isinstance(function, ast.FunctionDef) and function.returns is not None
    taken, defaults = function.args.args, function.args.defaults
    parameters = []
    for place, argument in enumerate(taken):
        bare = re.fullmatch(r"arg\d+|self", argument.arg)  # pybind11's names for unnamed arguments
        default = defaults[place - len(taken)] if place >= len(taken) - len(defaults) else _Parameter.empty
        kind = _Parameter.POSITIONAL_ONLY if bare else _Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(_Parameter(argument.arg, kind, default=default, annotation=_last(argument.annotation)))
    return inspect.Signature(parameters, return_annotation=_last(function.returns))


def _last(annotation: ast.expr | None) -> str:
    return ast.unparse(annotation).split("[")[0].split(".")[-1] if annotation else ""


def bind(function: Any, *arguments: Any, **named: Any) -> inspect.Signature:
    """The overload that accepts the arguments after `self`; raises `TypeError`, which lists all overloads."""
    known = overloads(function)
    for signature in known:
        try:
            bound = signature.bind(None, *arguments, **named).arguments
        except TypeError:
            continue
        kinds = signature.parameters
        if all(fits(value, kinds[name].annotation) for name, value in list(bound.items())[1:]):
            return signature
    name = getattr(function, "__qualname__", function)
    raise TypeError(f"{name} takes none of {arguments} {named}, but {' or '.join(map(str, known)) or 'nothing'}")


def fits(value: Any, annotation: str) -> bool:
    """Whether pybind11 converts `value` to the type named `annotation`; None stands for a null pointer."""
    if annotation in _PLAIN:
        return _PLAIN[annotation](value)
    return value is None or annotation in [kind.__name__ for kind in (type(value), *type(value).__mro__, *_also(value))]


def _also(value: Any) -> tuple[type, ...]:
    kind = getattr(value, "_stands_for", None)
    return kind.__mro__ if kind is not None else ()


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, enum.Enum)


def _is_buffer(value: Any) -> bool:
    try:
        return memoryview(value) is not None
    except TypeError:
        return False


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "SupportsInt": _is_integer,
    "SupportsFloat": lambda value: isinstance(value, (int, float)),
    "str": lambda value: isinstance(value, (str, bytes)),
    "FallbackString": lambda value: isinstance(value, (str, bytes)),
    "bool": lambda value: isinstance(value, bool),
    "Buffer": _is_buffer,
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
    "Dims": lambda value: (
        type(value).__name__ == "Dims" or (isinstance(value, (tuple, list)) and all(map(_is_integer, value)))
    ),
}
