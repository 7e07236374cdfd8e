"""`StepShape`: the sizes of one step, checked against a compiled plan's profile before a launch.

shape = StepShape(profile=0, B=1, R=32, N=512, Q=96, P=2049)
shape.check(limits, "refresh")                # EngineError: "Q is 96, ... takes 1 to 64"
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dpad.runtime.engines.checks import LARGER_BATCH, LARGER_LENGTH
from dpad.runtime.errors import EngineError

_WAY_OUT = {
    "B": LARGER_BATCH,
    **dict.fromkeys("NQK", LARGER_LENGTH),
    "R": "use a smaller block_length, or export with a larger --block-length",
    "P": "open the bundle with another number of slots",
}


@dataclass(frozen=True)
class StepShape:
    """The optimisation profile and the sizes of the axes, named as in `StepContract`; 1 for axes that a plan lacks."""

    profile: int
    B: int
    R: int
    N: int = 1
    Q: int = 1
    K: int = 1
    P: int = 1  # the same in all steps of an engine

    def of(self, axes: tuple[str | int, ...]) -> tuple[int, ...]:
        """The shape of a tensor with `axes`."""
        return tuple(axis if isinstance(axis, int) else int(getattr(self, axis)) for axis in axes)

    def check(self, limits: Mapping[str, tuple[int, int]], profile: str) -> None:
        """Raise an `EngineError` that names axis, size and limit, unless the profile takes this shape."""
        for axis, (low, high) in limits.items():
            size = getattr(self, axis)
            if not low <= size <= high:
                takes = f"the {profile} profile of this engine takes {low} to {high}"
                raise EngineError(f"{axis} is {size}, but {takes}; {_WAY_OUT[axis]}")
