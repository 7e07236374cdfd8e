"""Numbers that come from outside, told apart and made Python's own.

is_integer(True)                    # False
as_integer(np.uint8(5))             # 5, of which -5 is no 251
"""

import math
from typing import Any, TypeGuard

import numpy as np

from dpad.runtime.arguments import plain
from dpad.runtime.errors import InvalidRequest

_BITS = 128  # of the largest seed that numpy's own advice draws; an integer of thousands could not even be printed


def is_integer(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number of Python or numpy; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is an integer or a float of Python or numpy."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def as_integer(value: Any, name: str = "a number") -> Any:
    """A whole number as Python's own, which does not wrap around where numpy's narrow ones do; all else as it is.

    Raises `InvalidRequest` for one that is larger than anything it could be good for.
    """
    value = plain(value)
    if not is_integer(value):
        return value
    number = int.__index__(value) if isinstance(value, int) else int(value)  # a class of integers may have its own
    if number.bit_length() > _BITS:
        raise InvalidRequest(f"{name} of {number.bit_length()} bits is too large; {_BITS} bits are the most")
    return number


def as_number(value: Any) -> Any:
    """A number as Python's float, infinite where it is larger than any float; all else as it is."""
    value = plain(value)
    if not is_number(value):
        return value
    try:
        if isinstance(value, int):
            return int.__float__(value)
        return float.__float__(value) if isinstance(value, float) else float(value)
    except OverflowError:
        return math.inf if int.__index__(value) > 0 else -math.inf
