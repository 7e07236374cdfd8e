"""`Slots`: which slots of an engine's pool of keys and values are free.

    slots = Slots(4096)
    mine = slots.take(300)          # [300] slot numbers, None if so many are not free
    slots.give(mine)

A sequence holds its slots from the pass that it joins to the one that it leaves, and nothing is copied or moved when
others come and go. Slot 0 is nobody's: it stays zero, and is what padding reads.
"""

from threading import RLock

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.errors import EngineError, InvalidRequest
from dpad.runtime.show import shown

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Run = tuple[int, int, int]  # first of the rows [B · Q], first slot, how many


def row_bytes(contract: StepContract, dtype: str) -> int:
    """What the key or the value of one token takes in one layer."""
    return contract.kv_heads * contract.head_size * ITEM_BYTES[dtype]


def slot_bytes(contract: StepContract, dtype: str) -> int:
    """What one slot takes in all layers, keys and values."""
    return 2 * contract.layers * row_bytes(contract, dtype)


def runs_of(write_slots: NDArray[np.int64]) -> list[Run]:
    """Rows that follow each other into slots that follow each other, for `write_slots` [B, Q]."""
    slots = write_slots.ravel()
    rows = np.flatnonzero(slots >= 0)
    slots = slots[rows]
    parted = (np.diff(rows, prepend=-2) != 1) | (np.diff(slots, prepend=-2) != 1)
    firsts = np.flatnonzero(parted)
    counts = np.diff(firsts, append=len(rows))
    return list(zip(rows[firsts].tolist(), slots[firsts].tolist(), counts.tolist()))


def pool_size(contract: StepContract, slot_bytes: int, available: int, asked: int | None = None) -> int:
    """P, the slots of a pool, slot 0 included.

    Args:
        contract: whose limits the default serves: `max_batch` canvases of `max_length`.
        slot_bytes: what a slot takes in all layers, keys and values.
        available: bytes of memory; the default takes half of them at most, and has room for one canvas all the same.
        asked: the caller's own number.

    Raises:
        InvalidRequest: `asked` is outside what memory has room for.
        EngineError: there is no room for one canvas.
    """
    room = min(available // slot_bytes, contract.axis_ranges()["P"][1])
    if asked is None:
        canvas = contract.max_length + 1
        if canvas > room:
            raise EngineError(
                f"keys and values of {contract.max_length} tokens take {canvas * slot_bytes / 1e9:.1f} GB, and "
                f"{available / 1e9:.1f} GB of memory are available; free some, or give slots for shorter canvases"
            )
        return max(canvas, min(contract.max_batch * contract.max_length + 1, room // 2))
    if not 2 <= asked <= room:
        raise InvalidRequest(f"slots {shown(asked)} must be from 2 to {room}, for which memory has room here")
    return asked


class Slots:
    """The slots 1 … `size` - 1 of a pool; threads may take and give at the same time."""

    def __init__(self, size: int) -> None:
        """`size` is P, slot 0 included."""
        self.size = size
        self._free = np.ones(size, dtype=bool)
        self._free[0] = False
        self._lock = RLock()  # the collector may give slots back in the middle of a call

    @property
    def most(self) -> int:
        """How many there are to take when nobody holds any."""
        return self.size - 1

    @property
    def free(self) -> int:
        """How many could be taken now."""
        return int(self._free.sum())

    def take(self, count: int) -> NDArray[np.int64] | None:
        """`count` slots, one behind the other where there is such a place: then rows are written in one copy."""
        with self._lock:
            free = np.flatnonzero(self._free)
            if count > len(free):
                return None
            ends = free[count - 1 :] if count else free
            runs = np.flatnonzero(ends - free[: len(ends)] == count - 1)
            first = int(runs[0]) if runs.size else 0
            taken = free[first : first + count]
            self._free[taken] = False
            return taken

    def give(self, slots: NDArray[np.int64]) -> None:
        """Take slots back, to be lent to others at once."""
        with self._lock:
            self._free[slots] = True
