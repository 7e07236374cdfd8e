"""Formats untrusted values for messages: short, on one line, without control characters for a terminal.

    f"seed {shown(seed)} must be 0 or more"     # raises nothing, whatever `seed` is
    escaped("\\x1b[2J")                          # r"\\x1b[2J": a terminal prints it and does not execute it
    counted(1, "block")                         # "1 block"

A value may be larger than any message, contain itself, or raise in its own `__repr__`.
"""

import re
from reprlib import Repr
from typing import Any

# Control characters, line separators, characters that change the writing direction, and lone surrogates, which no
# stream can encode.
_UNSEEN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = re.compile(f"[{_UNSEEN}]")
_CONTROLS_IN_TEXT = re.compile(f"(?![\n\t])[{_UNSEEN}]")
_BREAKS = re.compile(r"\s*\n\s*")  # line breaks in a repr of several lines, such as an array's
_MOST = 240  # characters
_BITS = 256


class _Short(Repr):
    """Shortens long containers and texts and deep nesting; of integers too large to print it writes the size."""

    def repr_int(self, x: int, level: int) -> str:
        """`Repr` calls it for every class named `int`, which need not be Python's."""
        return f"<integer of {x.bit_length()} bits>" if x.bit_length() > _BITS else repr(x)


_repr = _Short()
_repr.maxstring = _repr.maxlong = _repr.maxother = 120
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxarray = _repr.maxdeque = 8
_repr.maxlevel = 4


def shown(value: object) -> str:
    """The `repr` of `value`, cut to 240 characters; the name of its type if `repr` fails."""
    try:
        return _cut(escaped(_BREAKS.sub(" ", _repr.repr(value))))
    except Exception:  # the object's own methods raised, or an integer has thousands of digits
        return f"a value of type {kind(value)}"


def told(error: BaseException) -> str:
    """The message of an error from other code, cut to 240 characters; the name of its type if the message is empty."""
    try:
        return _cut(escaped(str(error))) or kind(error)
    except Exception:  # the error's own `__str__` raised
        return kind(error)


def kind(value: object) -> str:
    """The name of the type of `value`."""
    return escaped(str(type(value).__name__))


def escaped(text: str, *, lines: bool = False) -> str:
    r"""`text` with control characters written as `\x1b`; `lines` leaves newlines and tabs as they are."""
    return (_CONTROLS_IN_TEXT if lines else _CONTROLS).sub(_escape, text)


def counted(number: int, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."


def warned(message: Warning | str, *place: Any, **more: Any) -> str:
    """A warning as one line, without its place in the code: `warnings.formatwarning` of a command."""
    return f"warning: {escaped(str(message), lines=True)}\n"
