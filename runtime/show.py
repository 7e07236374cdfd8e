"""Values from outside as text: short, on one line, and harmless to a terminal.

    f"seed {shown(seed)} must be 0 or more"     # whatever `seed` is: nothing here raises
    escaped("\\x1b[2J")                          # r"\\x1b[2J": a terminal does not obey it
    counted(1, "block")                         # "1 block"

A value may be larger than any message, hold itself, or fail when it is asked for its text.
"""

import re
from reprlib import Repr

# Control characters, line separators, what reverses the direction of writing, and halves of surrogate pairs, which
# no stream can encode.
_UNSEEN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = re.compile(f"[{_UNSEEN}]")
_CONTROLS_IN_TEXT = re.compile(f"(?![\n\t])[{_UNSEEN}]")
_BREAKS = re.compile(r"\s*\n\s*")  # of what is written on several lines, as arrays are
_MOST = 240  # characters
_BITS = 256


class _Short(Repr):
    """Of long containers and texts their ends, of nesting the outermost, of integers beyond printing their size."""

    def repr_int(self, x: int, level: int) -> str:
        """A class of that name may have called its values so."""
        return f"<integer of {x.bit_length()} bits>" if x.bit_length() > _BITS else repr(x)


_repr = _Short()
_repr.maxstring = _repr.maxlong = _repr.maxother = 120
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxarray = _repr.maxdeque = 8
_repr.maxlevel = 4


def shown(value: object) -> str:
    """`value` as Python would write it, cut to some 240 characters; its kind where it cannot be written."""
    try:
        return _cut(escaped(_BREAKS.sub(" ", _repr.repr(value))))
    except Exception:  # what an object's own methods raise, and integers of thousands of digits
        return f"a value of type {kind(value)}"


def told(error: BaseException) -> str:
    """The message of an error that is not this package's, or the name of its type where it has none."""
    try:
        return _cut(escaped(str(error))) or kind(error)
    except Exception:  # as above
        return kind(error)


def kind(value: object) -> str:
    """The name of the type of `value`."""
    return escaped(str(type(value).__name__))


def escaped(text: str, *, lines: bool = False) -> str:
    r"""`text` with its control characters as `\x1b`; `lines` leaves the ends of lines and tabs as they are."""
    return (_CONTROLS_IN_TEXT if lines else _CONTROLS).sub(_escape, text)


def counted(number: int, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
