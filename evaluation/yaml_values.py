"""Reads values that YAML or a command line may spell as text: numbers, booleans, None.

integer("max_gen_toks", "256"), number("temperature", "1e-3"), flag("do_sample", "false", True)
"""

import math
from typing import Any

from dpad.runtime.checks import as_integer, is_integer, is_number
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import shown

_YES, _NO = ("true", "yes", "on", "1", "1.0"), ("false", "no", "off", "0", "0.0")
_NONE = ("", "none", "null")
_EXACT = 1 << 53  # larger integers are not exact as floats


def number(name: str, value: Any) -> float:
    """Read a finite number, or text that spells one; raises `InvalidRequest`."""
    try:
        spelled = isinstance(value, str) and value.isascii() and "_" not in value  # `float` accepts more spellings
        read = float(value) if is_number(value) or spelled else math.nan
    except (ValueError, OverflowError):
        read = math.nan
    if not math.isfinite(read):
        raise InvalidRequest(f"{name} {shown(value)} is not a number")
    return read


def integer(name: str, value: Any) -> int:
    """Read an integer, also as text or as a float without a fraction; raises `InvalidRequest`."""
    if is_integer(value):
        return int(as_integer(value, name))
    read = number(name, value)
    if not read.is_integer() or abs(read) > _EXACT:
        raise InvalidRequest(f"{name} {shown(value)} is not an integer")
    return int(read)


def flag(name: str, value: Any, default: bool) -> bool:
    """Read True or False, also as text or as 1 and 0; None is `default`. Raises `InvalidRequest`."""
    if is_none(value):
        return default
    spelled = str(value).strip().lower() if isinstance(value, (str, bool)) or _is_bit(value) else ""
    if spelled in _YES:
        return True
    if spelled in _NO:
        return False
    raise InvalidRequest(f"{name} {shown(value)} is neither True nor False")


def is_none(value: Any) -> bool:
    """Whether `value` is None, or text that spells it."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _NONE)


def _is_bit(value: Any) -> bool:
    return is_number(value) and value in (0, 1)
