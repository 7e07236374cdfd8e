"""Costs of the filters, tests, methods and operators of a chat template, computed before they run, in `Budget` steps.

    FILTERS["center"](budget, "text", 10**9)       # steps; templates cannot use filters that have no cost here
    method(budget, "text", "ljust", (10**9,), {})  # steps, or None for a method that a template may not call

The costs are rough upper bounds of time and memory. Cheap and common operations are counted closely; operations that
no published template needs are counted at their worst case.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpad.runtime.text.template_budget import CHARACTERS, Budget, Exhausted, check_bits

Cost = Callable[..., int]

_DIGITS = re.compile(r"\d{1,19}")
_PLACES = 400  # most decimal places of a float


def constant(budget: Budget, *args: Any, **kwargs: Any) -> int:
    """Cost of an operation that does not read all of a value."""
    return 1


def deep(budget: Budget, *args: Any, **kwargs: Any) -> int:
    """Cost of an operation that may read all of its arguments."""
    return sum(map(budget.weigh, args)) + sum(map(budget.weigh, kwargs.values()))


def text(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """Cost of writing a text of about the size of `value`."""
    return budget.weigh_text(value) + deep(budget, *args, **kwargs)


def escaped(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """Cost of writing a text in which each character may become twelve."""
    return 12 * text(budget, value, *args, **kwargs)


def every(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """Cost of running Python code for each element, without the cost of the operations that the code calls."""
    return 1 + 10 * _length(value) + deep(budget, *args, **kwargs)


def ordered(budget: Budget, *args: Any, **kwargs: Any) -> int:
    """Cost of comparing elements with one another."""
    return 8 * deep(budget, *args, **kwargs)


def squared(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """Cost of an operation whose time may grow with the square of a text's length."""
    return text(budget, value, *args, **kwargs) + budget.weigh_text(value) ** 2 // 64


def center(budget: Budget, value: Any, width: Any = 80) -> int:
    """Cost of padding a text with spaces to `width`."""
    return text(budget, value) + _count(width) // CHARACTERS


def indent(budget: Budget, value: Any, width: Any = 4, *args: Any, **kwargs: Any) -> int:
    """Cost of writing spaces, or another text, before each line of a text."""
    lines = 1 + (value.count("\n") if isinstance(value, str) else 0)
    return text(budget, value, width) + lines * (len(width) if isinstance(width, str) else _count(width))


def join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> int:
    """Cost of joining elements to one text."""
    return budget.weigh_text(value) + _length(value) * budget.weigh_text(d) + deep(budget, attribute)


def batched(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> int:
    """Cost of dividing elements into lists of a given length, or into a given number of lists."""
    return 1 + 10 * _length(value) + 10 * _count(linecount)


def slices(budget: Budget, value: Any, slices: Any, fill_with: Any = None) -> int:
    """Cost of `slice`: that of `batched`, with Jinja's name for the number of lists."""
    return batched(budget, value, slices)


def rounded(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> int:
    """Cost of rounding a number to some places; raises `Exhausted` for too many."""
    if isinstance(precision, int) and abs(precision) > _PLACES:
        raise Exhausted(f"it rounds to more than {_PLACES} places")
    return 1


def replace(budget: Budget, value: Any, old: Any, new: Any, count: Any = None) -> int:
    """Cost of replacing parts of a text."""
    steps = text(budget, value, old, new)
    if isinstance(value, str) and isinstance(old, str):
        steps += value.count(old) * budget.weigh_text(new)
    return steps


def printf(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """Cost of `value % args`: each `%` may write all arguments, padded to a width in digits or, with `*`, in one."""
    if not isinstance(value, str):
        return text(budget, value, *args, **kwargs)
    values = [*args, *kwargs.values()]
    written = value.count("%") * sum(map(budget.weigh_text, values))
    flat = [part for each in values for part in (each if isinstance(each, tuple) else [each])]
    stars = value.count("*") * max((abs(part) for part in flat if isinstance(part, int)), default=0)
    return text(budget, value) + written + (padding(value) + stars) // CHARACTERS


def padding(spec: str) -> int:
    """The most characters of padding that the numbers in a format can produce."""
    return sum(map(int, _DIGITS.findall(spec)))


def tojson(
    budget: Budget,
    x: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> int:
    """Cost of writing JSON, with each value on its own line behind `indent`."""
    between = len(indent) if isinstance(indent, str) else _count(indent)
    between += sum(len(part) for part in separators or () if isinstance(part, str))
    weight = budget.weigh(x)
    return 12 * weight + weight * between * 8


_FILTERS: dict[Cost, str] = {
    constant: "abs count d default first last length random filesizeformat",
    every: "attr items list map reject rejectattr reverse select selectattr sum",
    text: "capitalize float int lower safe string title trim truncate upper",
    ordered: "dictsort groupby max min sort unique",
    escaped: "e escape forceescape urlencode wordcount",
    squared: "pprint striptags urlize wordwrap xmlattr",
    batched: "batch",
    slices: "slice",
    center: "center",
    indent: "indent",
    join: "join",
    printf: "format",
    replace: "replace",
    rounded: "round",
    tojson: "tojson",
}
_TESTS: dict[Cost, str] = {
    constant: "boolean callable defined divisibleby escaped even false float integer iterable mapping none number odd "
    "sameas sequence string true undefined",
    deep: "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in filter test",
    text: "lower upper",
}
FILTERS = {name: cost for cost, names in _FILTERS.items() for name in names.split()}
TESTS = {name: cost for cost, names in _TESTS.items() for name in names.split()}

_METHODS: dict[type, str] = {
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count index",
    int: "bit_length",
    float: "is_integer",
}
_FORWARD = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rstrip split "
    "splitlines startswith strip swapcase title upper"
)
_FORWARD_NAMES = frozenset(_FORWARD.split())
_BACKWARD_NAMES = frozenset(("rfind", "rindex", "rpartition", "rsplit"))
_PADDED_NAMES = frozenset(("center", "ljust", "rjust", "zfill"))


def method(budget: Budget, owner: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Steps of `owner.name(*args, **kwargs)`; None for methods that a template may not call."""
    if isinstance(owner, str):
        return _string_method(budget, owner, name, args, kwargs)
    for kind, names in _METHODS.items():
        if isinstance(owner, kind) and name in names.split():
            shallow = kind is dict and name != "copy"
            return deep(budget, *args, **kwargs) + (1 if shallow else budget.weigh(owner))
    return None


def _string_method(budget: Budget, owner: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    steps = 4 * budget.weigh(owner) + deep(budget, *args, **kwargs)  # times 4: short pieces in a list take more memory
    if name in _FORWARD_NAMES:
        return steps
    if name in _BACKWARD_NAMES:  # a backward search takes time in proportion to the product of both lengths
        needles = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
        return steps + len(owner) * sum(map(len, needles)) // 1000
    if name in _PADDED_NAMES:
        return steps + max(map(_count, args), default=0) // CHARACTERS
    if name == "expandtabs":
        return steps + owner.count("\t") * max(map(_count, (*args, *kwargs.values())), default=8)
    if name == "join":
        return steps + sum(map(_length, args)) * budget.weigh(owner) + sum(map(budget.weigh_text, args))
    if name == "replace" and len(args) > 1:
        return steps + replace(budget, owner, *args[:2])
    return None


def binary(budget: Budget, operator: str, left: Any, right: Any) -> int:
    """Steps of `left operator right`."""
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "*" and whole:
        check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and whole and right > 0:
        check_bits(left.bit_length() * right)
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(many, (str, list, tuple)):
                return 1 + len(many) * _count(times) // (CHARACTERS if isinstance(many, str) else 1)
    elif operator == "%" and isinstance(left, str):
        return printf(budget, left, right)
    elif operator == "+" and isinstance(left, (list, tuple)):
        return 1 + len(left) + _length(right)
    return deep(budget, left, right)


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0
