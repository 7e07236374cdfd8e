"""`TrtCache`: keys and values of a batch, where the last refresh left them on the device.

    cache = TrtCache(pool, batch=2, slots=128)
    buffer = cache.reserve(stride)       # the refresh writes its rows straight into it
    cache.wrote(gather_indices)          # from now on it holds those positions

The refresh's outputs are the cache: nothing is copied. The buffer goes back to its pool
when the cache is dropped.
"""

import weakref

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.kv_pool import Buffer, KvPool
from dpad.runtime.rows import CacheRows


class _Lease:
    """What a cache holds of the pool; outlives the cache just long enough to give it back."""

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool
        self.buffer: Buffer | None = None

    def release(self) -> None:
        buffer, self.buffer = self.buffer, None
        if buffer is not None:
            self.pool.give(buffer)


class TrtCache:
    """A cache for `batch` canvases of `slots` positions; memory is taken at the first refresh."""

    def __init__(self, pool: KvPool, batch: int, slots: int) -> None:
        self.batch, self.slots = batch, slots
        self.filled = 0  # rows of the last refresh: T of the steps that read it
        self._rows = CacheRows(batch, slots)
        self._lease = _Lease(pool)
        weakref.finalize(self, self._lease.release).atexit = False

    @property
    def pool(self) -> KvPool:
        """Where its memory comes from: the engine that it belongs to."""
        return self._lease.pool

    @property
    def buffer(self) -> Buffer | None:
        """Where the rows lie; None before the first refresh."""
        return self._lease.buffer

    def reserve(self, stride: int) -> Buffer:
        """A buffer of at least `stride` bytes a tensor, about to be overwritten: the cache holds nothing now."""
        self._rows.wrote(np.full((self.batch, 0), -1, dtype=np.int64))
        self.filled = 0
        if self._lease.buffer is None or self._lease.buffer.stride < stride:
            self._lease.release()
            self._lease.buffer = self._lease.pool.take(stride)
        return self._lease.buffer

    def wrote(self, gather_indices: NDArray[np.int64]) -> None:
        """A refresh has written row j of each sequence at position `gather_indices[b, j]` [B, Q]."""
        self._rows.wrote(gather_indices)
        self.filled = gather_indices.shape[1]

    def find(self, cache_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [B, K] of positions [B, K]; -1 stays. Raises `EngineError` for one that was not written."""
        return self._rows.find(cache_indices)
