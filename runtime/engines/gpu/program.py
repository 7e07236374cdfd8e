"""`Program`: something compiled that an engine on a GPU runs: a step, or what decides from its logits.

    run = program.bind(StepShape(profile=0, B=1, R=32, Q=96), {"canvas": address, ...})
    run.queue()                          # on the device's stream

All else of an engine is common to its programs: `TrtProgram` runs a plan of TensorRT, `OnnxProgram` a session of ONNX
Runtime, and `dpad.models.compiled` a step that PyTorch compiled.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.gpu.step_shape import StepShape

Limits = Mapping[str, tuple[int, int]]  # axis -> smallest and largest size
_LOGITS = 2**27  # of the largest step: half a GiB


class Run(Protocol):
    """One shape of a program, with the addresses of all its tensors."""

    def queue(self) -> None:
        """Queue it on the device's stream; raises `EngineError` in the library's own words."""


class Program(Protocol):
    """Raises `EngineError` in the library's own words.

    Attributes:
        inputs, outputs: its tensors.
        profiles: their names, for errors. A step has "refresh", which attends no cached row, and "cached".
        limits: the sizes that each profile takes, by axis.
        records: whether its runs may be recorded as CUDA graphs; no where the library records them itself.
        multiple: Q and K should be multiples of it; 1 if all sizes are alike.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    profiles: Sequence[str]
    limits: Sequence[Limits]
    records: bool
    multiple: int = 1

    def bind(self, shape: StepShape, addresses: Mapping[str, int], *, own: bool = False) -> Run:
        """A run of a shape within `limits`, its tensors at `addresses`.

        It holds until the next one of its profile is bound; for good, if it is to be the caller's `own`.
        """

    def keep(self) -> None:
        """Keep for the next start what was compiled here; most programs compile nothing when they run."""
        return

    def close(self) -> None:
        """Free what it holds; nothing queued may still use it."""


def step_limits(contract: StepContract) -> list[Limits]:
    """The limits of a step that takes any size in both profiles.

    R is limited by the memory of the logits, and takes a block in any case.
    """
    longest, block = contract.max_length, min(contract.block_length, contract.max_length)
    rows = _LOGITS // (contract.vocab_size * contract.max_batch)
    ranges = contract.axis_ranges() | {"R": (1, min(max(rows, block), longest))}
    return [ranges | {"K": (1, 1)}, ranges | {"K": (1, longest)}]
