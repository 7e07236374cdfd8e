"""What filters, tests, methods and operators of a chat template cost, in the steps of `Budget`, before they run.

    FILTERS["center"](budget, "text", 10**9)       # steps; a filter that has no cost here does not exist
    method(budget, "text", "ljust", (10**9,), {})  # steps, or None for a method that a template may not call

The costs bound time and memory from above, roughly: what is cheap and common is counted closely, what no published
template needs is counted as if it were the worst.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpad.runtime.text.template_budget import CHARACTERS, Budget, Exhausted, check_bits

Cost = Callable[..., int]

_DIGITS = re.compile(r"\d{1,19}")
_PLACES = 400  # of a float


def constant(budget: Budget, *args: Any, **kwargs: Any) -> int:
    """What looks at a value without going through it."""
    return 1


def deep(budget: Budget, *args: Any, **kwargs: Any) -> int:
    """What may look at all of its arguments."""
    return sum(map(budget.weigh, args)) + sum(map(budget.weigh, kwargs.values()))


def text(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """What writes a text of about the size of `value`."""
    return budget.weigh_text(value) + deep(budget, *args, **kwargs)


def escaped(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """... of which every character may become a dozen."""
    return 12 * text(budget, value, *args, **kwargs)


def every(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """What runs Python for each element; what that calls has its own cost."""
    return 1 + 10 * _length(value) + deep(budget, *args, **kwargs)


def ordered(budget: Budget, *args: Any, **kwargs: Any) -> int:
    """What compares elements with one another."""
    return 8 * deep(budget, *args, **kwargs)


def squared(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """What may take a time that grows with the square of a text."""
    return text(budget, value, *args, **kwargs) + budget.weigh_text(value) ** 2 // 64


def center(budget: Budget, value: Any, width: Any = 80) -> int:
    """Text between spaces."""
    return text(budget, value) + _count(width) // CHARACTERS


def indent(budget: Budget, value: Any, width: Any = 4, *args: Any, **kwargs: Any) -> int:
    """Text with spaces, or another text, before its lines."""
    lines = 1 + (value.count("\n") if isinstance(value, str) else 0)
    return text(budget, value, width) + lines * (len(width) if isinstance(width, str) else _count(width))


def join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> int:
    """Elements as one text."""
    return budget.weigh_text(value) + _length(value) * budget.weigh_text(d) + deep(budget, attribute)


def batched(budget: Budget, value: Any, linecount: Any, fill_with: Any = None) -> int:
    """Elements in lists of a length, or in a number of lists."""
    return 1 + 10 * _length(value) + 10 * _count(linecount)


def slices(budget: Budget, value: Any, slices: Any, fill_with: Any = None) -> int:
    """... by the name that Jinja gives the number."""
    return batched(budget, value, slices)


def rounded(budget: Budget, value: Any, precision: Any = 0, method: Any = "common") -> int:
    """A number to some places."""
    if isinstance(precision, int) and abs(precision) > _PLACES:
        raise Exhausted(f"it rounds to more than {_PLACES} places")
    return 1


def replace(budget: Budget, value: Any, old: Any, new: Any, count: Any = None) -> int:
    """Text with other text in place of some."""
    steps = text(budget, value, old, new)
    if isinstance(value, str) and isinstance(old, str):
        steps += value.count(old) * budget.weigh_text(new)
    return steps


def printf(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> int:
    """`value % args`: each `%` may write all of the arguments, padded as far as its digits say, or `*` and a number."""
    if not isinstance(value, str):
        return text(budget, value, *args, **kwargs)
    values = [*args, *kwargs.values()]
    written = value.count("%") * sum(map(budget.weigh_text, values))
    flat = [part for each in values for part in (each if isinstance(each, tuple) else [each])]
    stars = value.count("*") * max((abs(part) for part in flat if isinstance(part, int)), default=0)
    return text(budget, value) + written + (padding(value) + stars) // CHARACTERS


def padding(spec: str) -> int:
    """Characters that the widths and places in a format can ask for."""
    return sum(map(int, _DIGITS.findall(spec)))


def tojson(
    budget: Budget,
    x: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> int:
    """JSON, each value perhaps on a line of its own behind `indent`."""
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
    """Steps of `owner.name(*args, **kwargs)`; None for methods that are not a template's to call."""
    if isinstance(owner, str):
        return _string_method(budget, owner, name, args, kwargs)
    for kind, names in _METHODS.items():
        if isinstance(owner, kind) and name in names.split():
            shallow = kind is dict and name != "copy"
            return deep(budget, *args, **kwargs) + (1 if shallow else budget.weigh(owner))
    return None


def _string_method(budget: Budget, owner: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    steps = 4 * budget.weigh(owner) + deep(budget, *args, **kwargs)  # a list of short pieces is larger than its text
    if name in _FORWARD_NAMES:
        return steps
    if name in _BACKWARD_NAMES:  # where a search takes the product of both lengths
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
