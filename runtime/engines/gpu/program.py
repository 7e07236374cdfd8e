"""`Program`: compiled code that an engine on a GPU runs, either a step or `decide`.

    run = program.bind(StepShape(profile=0, B=1, R=32, Q=96), {"canvas": address, ...})
    run.queue()                          # on the device's stream

The rest of an engine is the same for every kind of program: `TrtProgram` runs a plan of TensorRT, `OnnxProgram` a
session of ONNX Runtime, and `dpad.models.compiled` a step that PyTorch compiled.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.gpu.step_shape import StepShape

Limits = Mapping[str, tuple[int, int]]  # axis -> smallest and largest size
_LOGITS = 2**27  # most logits of a step, half a GiB in float32


class Run(Protocol):
    """One shape of a program, with the addresses of all its tensors."""

    def queue(self) -> None:
        """Queue the run on the device's stream; raises `EngineError` with the library's own words."""


class Program(Protocol):
    """A compiled step or `decide`. Its errors are `EngineError`s with the library's own words.

    Attributes:
        inputs, outputs: its tensors.
        profiles: names of the profiles, for errors. A step has "refresh", which attends no cached row, and "cached".
        limits: the smallest and largest size of each axis, for each profile.
        records: whether the engine may record its runs as CUDA graphs; False if the library records them itself.
        multiple: sizes of Q and K should be multiples of this; 1 if any size is equally good.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    profiles: Sequence[str]
    limits: Sequence[Limits]
    records: bool
    multiple: int = 1

    def bind(self, shape: StepShape, addresses: Mapping[str, int], *, own: bool = False) -> Run:
        """A run of a shape within `limits`, with tensors at `addresses`.

        It is valid until the next run of its profile is bound. A run that is the caller's `own` stays valid.
        """

    def keep(self) -> None:
        """Save kernels that were compiled at run time for the next start; most programs compile none."""
        return

    def close(self) -> None:
        """Free the program; no queued work may still use it."""


def step_limits(contract: StepContract) -> list[Limits]:
    """The limits of a step that takes any size in both profiles.

    The memory of the logits limits R, but never to less than a block.
    """
    longest, block = contract.max_length, min(contract.block_length, contract.max_length)
    rows = _LOGITS // (contract.vocab_size * contract.max_batch)
    ranges = contract.axis_ranges() | {"R": (1, min(max(rows, block), longest))}
    return [ranges | {"K": (1, 1)}, ranges | {"K": (1, longest)}]
