"""`Slots`: the free slots of an engine's pool of keys and values.

    slots = Slots(4096)
    mine = slots.take(300)          # [300] slot numbers; None if fewer are free
    slots.give(mine)

A sequence holds its slots from its first pass to its last; nothing is copied or moved when other sequences join or
leave. Slot 0 is never lent: it stays zero, because padding reads it.
"""

from threading import RLock

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.errors import EngineError, InvalidRequest
from dpad.runtime.show import shown

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Run = tuple[int, int, int]  # first row among [B · Q], first slot, number of rows


def row_bytes(contract: StepContract, dtype: str) -> int:
    """Bytes of the key, or of the value, of one token in one layer."""
    return contract.kv_heads * contract.head_size * ITEM_BYTES[dtype]


def slot_bytes(contract: StepContract, dtype: str) -> int:
    """Bytes of one slot: keys and values of one token in all layers."""
    return 2 * contract.layers * row_bytes(contract, dtype)


def runs_of(write_slots: NDArray[np.int64]) -> list[Run]:
    """Group `write_slots` [B, Q] into runs of consecutive rows that go to consecutive slots."""
    slots = write_slots.ravel()
    rows = np.flatnonzero(slots >= 0)
    slots = slots[rows]
    parted = (np.diff(rows, prepend=-2) != 1) | (np.diff(slots, prepend=-2) != 1)
    firsts = np.flatnonzero(parted)
    counts = np.diff(firsts, append=len(rows))
    return list(zip(rows[firsts].tolist(), slots[firsts].tolist(), counts.tolist()))


def pool_size(contract: StepContract, slot_bytes: int, available: int, asked: int | None = None) -> int:
    """The number of slots P of a pool, slot 0 included.

    The default holds `max_batch` canvases of `max_length`, but takes at most half of the available memory, unless a
    single canvas needs more.

    Args:
        contract: the step's contract, with both limits.
        slot_bytes: bytes of a slot, see `slot_bytes`.
        available: bytes of memory.
        asked: the caller's own number; None is the default.

    Raises:
        InvalidRequest: `asked` is below 2, or more than memory has room for.
        EngineError: memory has no room for one canvas.
    """
    room = min(available // slot_bytes, contract.axis_ranges()["P"][1])
    if asked is None:
        canvas = contract.max_length + 1
        if canvas > room:
            raise EngineError(
                f"keys and values of {contract.max_length} tokens take {canvas * slot_bytes / 1e9:.1f} GB, but "
                f"{available / 1e9:.1f} GB of memory are available; free some, or set slots for shorter canvases"
            )
        return max(canvas, min(contract.max_batch * contract.max_length + 1, room // 2))
    if not 2 <= asked <= room:
        raise InvalidRequest(f"slots {shown(asked)} must be from 2 to {room}, the most that memory has room for")
    return asked


class Slots:
    """The slots 1 … `size` - 1 of a pool; threads may take and give at the same time."""

    def __init__(self, size: int) -> None:
        """`size` is P, slot 0 included."""
        self.size = size
        self._free = np.ones(size, dtype=bool)
        self._free[0] = False
        self._lock = RLock()  # the garbage collector may call `give` in the middle of a call

    @property
    def most(self) -> int:
        """Number of slots that can be lent: all but slot 0."""
        return self.size - 1

    @property
    def free(self) -> int:
        """Number of free slots."""
        return int(self._free.sum())

    def take(self, count: int) -> NDArray[np.int64] | None:
        """Take `count` slots, consecutive ones if possible, so that rows are written in one copy; None if too few."""
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
        """Give slots back; they are free at once."""
        with self._lock:
            self._free[slots] = True
