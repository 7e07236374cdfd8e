"""`CacheRows`: where each canvas position lies in a cache that is the last refresh's own output.

    rows = CacheRows(batch=2, slots=128)
    rows.wrote(positions)                 # row j now holds position positions[b, j]
    rows.find(cache_indices)              # positions -> rows of the cache
    rows.keep(cache_indices)              # forget all other rows
    rows.added(positions, firsts)         # row firsts[b] + j now holds position positions[b, j]

Slots of the contract are absolute canvas positions. An engine on a device keeps what the
refresh wrote where it wrote it, [B, Q, G, D], and looks slots up here instead of copying
every row to a place of its own: nothing is moved, and a cache has room for the rows that
DPad retained, not for the whole canvas.
"""

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.errors import EngineError


class CacheRows:
    """The row that holds each position [B, slots]; -1 where none does.

    One column more, always -1, is what a position of -1 indexes.
    """

    def __init__(self, batch: int, slots: int) -> None:
        self._rows = np.full((batch, slots + 1), -1, dtype=np.int64)
        self._lines = np.arange(batch)[:, None]

    def wrote(self, positions: NDArray[np.int64]) -> None:
        """The cache now holds these rows, `positions` [B, T] (-1 pads), and no others."""
        self._rows.fill(-1)
        self.added(positions, np.zeros(len(positions), dtype=np.int64))

    def added(self, positions: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
        """The cache now holds `positions` [B, Q] (-1 pads) too, from row `firsts` [B] of each sequence on."""
        lines, columns = np.nonzero(positions >= 0)
        self._rows[lines, positions[lines, columns]] = firsts[lines] + columns

    def keep(self, positions: NDArray[np.int64]) -> None:
        """Of what the cache holds only `positions` [B, K] (-1 pads) count from now on; `EngineError` as `find`."""
        rows = self.find(positions)
        self._rows.fill(-1)
        self._rows[self._lines, positions] = rows

    def ends(self) -> NDArray[np.int64]:
        """[B], the row behind the last one of each sequence that holds something; 0 where none does."""
        ends: NDArray[np.int64] = self._rows.max(axis=1) + 1
        return ends

    def of(self, chosen: NDArray[np.bool_]) -> "CacheRows":
        """Those of the sequences that are True in `chosen` [B]."""
        rows = CacheRows(int(chosen.sum()), self._rows.shape[1] - 1)
        rows._rows[:] = self._rows[chosen]
        return rows

    def find(self, cache_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [B, K] of the positions `cache_indices` [B, K]; -1 stays -1.

        Raises `EngineError` for a position that no step has written: its row holds nothing.
        """
        if not cache_indices.size:
            return cache_indices
        rows: NDArray[np.int64] = self._rows[self._lines, cache_indices]
        if rows.min() < 0:  # padding, or a position that is not there
            missing = cache_indices[(rows < 0) & (cache_indices >= 0)]
            if missing.size:
                raise EngineError(f"cache slot {missing[0]} is attended but no step of this cache has written it")
        return rows
