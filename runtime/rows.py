"""`CacheRows`: where each canvas position lies in a cache that is the last refresh's own output.

    rows = CacheRows(batch=2, slots=128)
    rows.wrote(positions)                 # row j now holds position positions[b, j]
    rows.find(cache_indices)              # positions -> rows of the cache

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
        lines, columns = np.nonzero(positions >= 0)
        self._rows[lines, positions[lines, columns]] = columns

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
