"""`TrtCache`: keys and values of a batch on the device, [B, pitch, G, D] a tensor.

    cache = TrtCache(pool, batch=2, slots=128, row_bytes=2048)
    buffer = cache.reserve(stride)       # the refresh writes its rows straight into it
    cache.wrote(gather_indices)          # from now on it holds those positions

The outputs of a refresh that attends nothing are the cache: nothing is copied. One that attends
rows of the cache reads what it would overwrite, so its outputs lie elsewhere at first:

    addition = Addition.of(inputs, cache.find(inputs.cache_indices))
    cache.make_room(pitch)               # before the step, for addition.rows of each sequence
    cache.append(addition, outputs)      # queued behind the step: copied behind what it attended
    cache.appended(addition)             # the copy has happened

The buffer goes back to its pool when the cache is dropped.
"""

import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.engines.base import StepInputs
from dpad.runtime.engines.gpu.kv_pool import Buffer, KvPool
from dpad.runtime.engines.rows import CacheRows


@dataclass(frozen=True)
class Addition:
    """What a refresh adds to the rows that it attends: positions `gathered` [B, Q] to positions `attended` [B, K].

    Of each sequence, the first `counts` [B] outputs go to row `firsts` [B] and on.
    """

    attended: NDArray[np.int64]
    gathered: NDArray[np.int64]
    firsts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: StepInputs, found: NDArray[np.int64]) -> "Addition":
        """That of a step which attends the rows `found` [B, K]; behind the last one there is nothing to keep."""
        firsts = found.max(axis=1, initial=-1) + 1
        gathered = inputs.gather_indices
        counts = np.where(gathered >= 0, np.arange(1, gathered.shape[1] + 1), 0).max(axis=1)
        # Steps read row 0 where they pad, and it must be finite: a sequence that has none yet gets a padded output.
        counts = np.maximum(counts, firsts == 0)
        return cls(inputs.cache_indices, gathered, firsts, counts)

    @property
    def rows(self) -> int:
        """Rows that a sequence needs to hold it."""
        return int((self.firsts + self.counts).max())


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

    def __init__(self, pool: KvPool, batch: int, slots: int, row_bytes: int) -> None:
        """`row_bytes` is what a row of one tensor takes."""
        self.batch, self.slots, self._row_bytes = batch, slots, row_bytes
        self.pitch = 0  # rows from one sequence to the next, T of the steps that read it; 0: it holds nothing
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
        self.pitch = 0
        if self._lease.buffer is None or self._lease.buffer.stride < stride:
            self._lease.release()
            self._lease.buffer = self.pool.take(stride)
        return self._lease.buffer

    def wrote(self, gather_indices: NDArray[np.int64]) -> None:
        """A refresh has written row j of each sequence at position `gather_indices[b, j]` [B, Q]."""
        self._rows.wrote(gather_indices)
        self.pitch = gather_indices.shape[1]

    def find(self, cache_indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [B, K] of positions [B, K]; -1 stays. Raises `EngineError` for one that was not written."""
        return self._rows.find(cache_indices)

    def make_room(self, pitch: int) -> None:
        """Let each sequence have `pitch` rows, no fewer than now; a failure leaves the cache as it was.

        What it holds moves to another buffer, but for a single sequence, which has room where its buffer ends.
        """
        size = self.batch * pitch * self._row_bytes
        if self.buffer is None or not self.pitch:
            self.reserve(size)
        elif pitch > self.pitch and (self.batch > 1 or self.buffer.stride < size):
            moved = self.rows_of(np.full(self.batch, True), pitch)
            self._lease.buffer, moved._lease.buffer = moved._lease.buffer, self._lease.buffer
        self.pitch = pitch

    def append(self, addition: Addition, outputs: Buffer) -> None:
        """Queue the copy of the step's `outputs`, [B, Q, G, D] a tensor. What was not attended is gone."""
        assert self.buffer is not None
        self._rows.keep(addition.attended)
        queries = addition.gathered.shape[1]
        for line, (first, count) in enumerate(zip(addition.firsts.tolist(), addition.counts.tolist())):
            self._copy(line * self.pitch + first, outputs, line * queries, count)

    def appended(self, addition: Addition) -> None:
        """What `append` has queued has happened."""
        self._rows.added(addition.gathered, addition.firsts)

    def rows_of(self, chosen: NDArray[np.bool_], pitch: int) -> "TrtCache":
        """A cache of its own for the sequences `chosen` [B], `pitch` rows each; the copies are queued."""
        copy = TrtCache(self.pool, int(chosen.sum()), self.slots, self._row_bytes)
        if self.buffer is not None and self.pitch:
            copy.make_room(pitch)
            copy._rows = self._rows.of(chosen)
            ends = np.maximum(copy._rows.ends(), 1)  # row 0 is finite, and must be
            for line, (source, end) in enumerate(zip(np.flatnonzero(chosen).tolist(), ends.tolist())):
                copy._copy(line * pitch, self.buffer, source * self.pitch, end)
        return copy

    def _copy(self, to: int, source: Buffer, start: int, count: int) -> None:
        """Queue the copy of `count` rows of every tensor; `to` and `start` are rows too."""
        assert self.buffer is not None
        if count:
            to, start, count = (rows * self._row_bytes for rows in (to, start, count))
            self.pool.copy(self.buffer, to, source, start, count)
