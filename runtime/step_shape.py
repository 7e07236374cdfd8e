"""`StepShape`: the sizes of one step, and the checks that come before a compiled engine is launched.

    check_indices(inputs, slots)                  # EngineError: "gather_indices holds 512, ..."
    shape = StepShape(profile=0, B=1, N=512, Q=96, K=1, R=32, T=1)
    shape.check(limits, "refresh")                # EngineError: "Q is 96, ... takes 1 to 64"

A compiled engine reads whatever an index names: an index that is out of range is another
request's memory. So they are checked here, every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpad.runtime.engine import StepInputs
from dpad.runtime.errors import EngineError

_INPUTS = ("canvas", "gather_indices", "cache_indices", "decode_rows")
_WAY_OUT = {
    "B": "use smaller batches, or export with a larger --max-batch",
    "N": "use shorter canvases, or export with a larger --max-length",
    "Q": "use shorter canvases, or export with a larger --max-length",
    "K": "use shorter canvases, or export with a larger --max-length",
    "R": "use a smaller block_length, or export with a larger --block-length",
    "T": "use shorter canvases, or export with a larger --max-length",
}


@dataclass(frozen=True)
class StepShape:
    """The optimisation profile and the sizes of the axes, named as in `StepContract`."""

    profile: int
    B: int
    N: int
    Q: int
    K: int
    R: int
    T: int

    def of(self, axes: tuple[str | int, ...]) -> tuple[int, ...]:
        """The shape of a tensor with `axes`."""
        return tuple(axis if isinstance(axis, int) else int(getattr(self, axis)) for axis in axes)

    def check(self, limits: Mapping[str, tuple[int, int]], profile: str) -> None:
        """Raise `EngineError`, naming axis, size and limit, unless the profile takes this shape."""
        for axis, (low, high) in limits.items():
            size = getattr(self, axis)
            if not low <= size <= high:
                raise EngineError(
                    f"{axis} is {size}, but the {profile} profile of this engine takes {low} to {high}; "
                    f"{_WAY_OUT[axis]}"
                )


def check_indices(inputs: StepInputs, batch: int, slots: int) -> None:
    """Raise `EngineError`, naming the input, the value and the limit, for inputs that may not be launched.

    `batch` and `slots` are those of the cache. -1 pads gather and cache indices.
    """
    for name in _INPUTS:
        array = getattr(inputs, name)
        if array.dtype != np.int64 or array.ndim != 2:
            raise EngineError(f"{name} is {array.dtype} of {array.ndim} axes; it must be int64 of 2")
        if array.shape[0] != batch:
            raise EngineError(f"{name} has {array.shape[0]} sequences, the cache has {batch}")
    _check_range("gather_indices", inputs, -1, inputs.canvas.shape[1])
    _check_range("cache_indices", inputs, -1, slots)
    _check_range("decode_rows", inputs, 0, inputs.gather_indices.shape[1])
    if inputs.write_back and inputs.cache_indices.shape[1]:
        raise EngineError("a step that reads the cache cannot replace it: write_back needs empty cache_indices")
    if inputs.write_back and inputs.gather_indices.max(initial=-1) >= slots:
        raise EngineError(f"gather_indices holds {inputs.gather_indices.max()}, the cache has {slots} slots")


def _check_range(name: str, inputs: StepInputs, low: int, end: int) -> None:
    array = getattr(inputs, name)
    if (array.size and not low <= (worst := array.min())) or (array.size and not (worst := array.max()) < end):
        raise EngineError(f"{name} holds {worst}; it may hold {low} to {end - 1}")
