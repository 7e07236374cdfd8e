"""`Engine`: opens one artifact and runs one denoising step. The only seam to a backend.

    with OnnxEngine(path, contract, "float32") as engine:
        cache = engine.new_cache(batch=1, slots=canvas.shape[1])
        outputs = engine.step(StepInputs(canvas, gather, cached, rows, write_back=True), cache)

An engine keeps no state between requests: caches belong to the caller, so that two
requests never disturb each other.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.contract import StepContract
from dpad.runtime.errors import EngineError


@dataclass(frozen=True)
class StepInputs:
    """Inputs of one step, on the host. Axes as in `StepContract`.

    Attributes:
        canvas: int64 [B, N].
        gather_indices: int64 [B, Q], positions that take part; -1 pads.
        cache_indices: int64 [B, K], cache slots that every query may attend; -1 pads.
        decode_rows: int64 [B, R], rows of Q whose prediction is wanted.
        write_back: a refresh: afterwards the cache holds the new rows, in the slots named by
            `gather_indices`, and those that were attended; what other slots held may be gone.
        want_logits: also return the logits.
    """

    canvas: NDArray[np.int64]
    gather_indices: NDArray[np.int64]
    cache_indices: NDArray[np.int64]
    decode_rows: NDArray[np.int64]
    write_back: bool = False
    want_logits: bool = False


@dataclass(frozen=True)
class StepOutputs:
    """Outputs of one step, on the host: [B, R] each, logits [B, R, V] if they were wanted."""

    token_ids: NDArray[np.int64]
    confidence: NDArray[np.float32]
    odds_against: NDArray[np.float32]
    logits: NDArray[np.float32] | None

    def first_rows(self, count: int) -> "StepOutputs":
        """Without the rows that padding added."""
        if self.token_ids.shape[1] == count:
            return self
        logits = None if self.logits is None else self.logits[:, :count]
        return StepOutputs(self.token_ids[:, :count], self.confidence[:, :count], self.odds_against[:, :count], logits)


class Engine(ABC):
    """One compiled or eager step. Not thread-safe unless a subclass says so."""

    name: str
    contract: StepContract
    dtype: str
    extends: bool = False  # whether a refresh may attend cached slots, and `rows_of` works
    narrows: bool = False  # whether it also pays to leave a batch's finished rows out in the middle of a block

    @abstractmethod
    def new_cache(self, batch: int, slots: int) -> Any:
        """Key/value storage for `batch` rows of `slots` positions; opaque to the caller."""

    @abstractmethod
    def step(self, inputs: StepInputs, cache: Any) -> StepOutputs:
        """Run one step; raises `EngineError` if the inputs are malformed or the backend fails.

        Inputs are checked with `checks.check_step` before anything is launched.
        """

    def rows_of(self, cache: Any, rows: NDArray[np.bool_]) -> Any:
        """The part of `cache` that belongs to the `rows` [B] that are True; only of an engine that `extends`."""
        raise EngineError(f"{self.name} cannot take rows out of a cache")

    @property
    def caches(self) -> tuple[str, ...]:
        """The cache policies that it runs; none, where its contract is block-causal and it cannot add to a cache."""
        if self.contract.block_causal:
            return (BLOCKS,) if self.extends else ()
        return tuple(cache for cache in CACHES if cache != "extend" or self.extends)

    def padded(self, axis: str, size: int) -> int:
        """The size to which axis `Q`, `K` or `R` is padded, so that shapes repeat; default none."""
        return size

    def close(self) -> None:
        """Release the backend; safe to call twice."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
