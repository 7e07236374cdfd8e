"""Reads callers' arguments: sequences, arrays and tensors of any library, and values whose own methods raise.

    listed(torch.tensor([5, 6]))        # [5, 6], without importing torch
    with reading("the prompt"):
        ...                             # any error that the value raises here becomes an InvalidRequest

Whatever a caller passes, these functions raise nothing but `InvalidRequest`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from dpad.runtime.errors import DpadError, InvalidRequest
from dpad.runtime.show import kind, shown, told

_MOST = 1 << 22  # elements, far more than the longest canvas of any model


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error in this block into an `InvalidRequest` that names `what`, the caller's value that raised it."""
    try:
        yield
    except DpadError:
        raise
    except Exception as error:
        raise InvalidRequest(f"{what} cannot be read: {kind(error)}: {told(error)}") from error


def axes(value: object) -> int | None:
    """Number of axes of an array or a tensor; None for any other value."""
    number = getattr(value, "ndim", None)
    return number if isinstance(number, int) and callable(getattr(value, "tolist", None)) else None


def plain(value: Any) -> Any:
    """The number in an array without axes; other values are returned unchanged, masked elements and NaT included."""
    number = value.tolist() if type(value) is not int and axes(value) == 0 else value
    return number if isinstance(number, (int, float)) else value


def listed(value: Any) -> list[Any] | None:
    """The elements of a sequence, an array or a tensor, with numbers as Python's own; None for any other value.

    Text and bytes give None, and so do sets (they have no order) and iterators (they can be read once only).
    """
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return None
    number = axes(value)
    if not (number if number is not None else isinstance(value, Sequence)):
        return None
    with reading(f"a list of type {kind(value)}"):
        if (length := len(value)) > _MOST:
            raise InvalidRequest(f"a list of {shown(length)} elements is longer than any canvas; {_MOST} are the most")
        if number is not None:
            return list(value.tolist())
        return [plain(element) for element in islice(value, length)]
