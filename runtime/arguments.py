"""What callers bring, taken apart: lists of any kind, and values whose own methods raise.

    listed(torch.tensor([5, 6]))        # [5, 6]; torch is not imported for it
    with reading("the prompt"):
        ...                             # what a strange value raises here is an InvalidRequest

Only `InvalidRequest` comes out, whatever goes in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from dpad.runtime.errors import DpadError, InvalidRequest
from dpad.runtime.show import kind, shown, told

_MOST = 1 << 22  # elements: four times a canvas that no model has


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Blame `what`, which a caller gave, for the errors that its own length, items or numbers raise."""
    try:
        yield
    except DpadError:
        raise
    except Exception as error:
        raise InvalidRequest(f"{what} cannot be read: {kind(error)}: {told(error)}") from error


def axes(value: object) -> int | None:
    """How many axes an array or a tensor has; None for what is neither."""
    number = getattr(value, "ndim", None)
    return number if isinstance(number, int) and callable(getattr(value, "tolist", None)) else None


def plain(value: Any) -> Any:
    """The number in an array without axes; all else as it is, so that a masked one or no time is not None."""
    number = value.tolist() if type(value) is not int and axes(value) == 0 else value
    return number if isinstance(number, (int, float)) else value


def listed(value: Any) -> list[Any] | None:
    """The elements of a sequence, an array or a tensor, their numbers as Python's own; None for what is none of these.

    Text and bytes are values of their own. What has no order, or can be read once only, is no list.
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
