"""Checks numbers that callers pass, and converts them to Python's own types.

is_integer(True)                    # False
as_integer(np.uint8(5))             # 5; negating it gives -5, while -np.uint8(5) is 251
"""

import math
from typing import Any, TypeGuard

import numpy as np

from dpad.runtime.arguments import plain
from dpad.runtime.errors import InvalidRequest

_BITS = 128  # as many as numpy's documentation recommends for a seed; Python cannot print integers of many thousands


def is_integer(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number of Python or numpy; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is an integer or a float of Python or numpy."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def as_integer(value: Any, name: str = "a number") -> Any:
    """Convert an integer to Python's `int`, which does not overflow as numpy's do; other values are returned unchanged.

    Raises `InvalidRequest` for an integer of more than 128 bits.
    """
    value = plain(value)
    if not is_integer(value):
        return value
    number = int.__index__(value) if isinstance(value, int) else int(value)  # a subclass of int may override methods
    if number.bit_length() > _BITS:
        raise InvalidRequest(f"{name} of {number.bit_length()} bits is too large; {_BITS} bits are the most")
    return number


def as_number(value: Any) -> Any:
    """Convert a number to Python's `float`, infinite if it is out of range; other values are returned unchanged."""
    value = plain(value)
    if not is_number(value):
        return value
    try:
        if isinstance(value, int):
            return int.__float__(value)
        return float.__float__(value) if isinstance(value, float) else float(value)
    except OverflowError:
        return math.inf if int.__index__(value) > 0 else -math.inf
