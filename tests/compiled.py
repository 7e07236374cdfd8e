"""The engine of steps compiled by PyTorch, opened from a checkpoint without a bundle.

with compiled_engine(directory, compiled=False) as engine: ...
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from checkpoints import contract_of

from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.models.compiled.device import TorchDevice
from dpad.models.compiled.program import TorchDecide, TorchProgram
from dpad.models.compiled.weights import load_merged
from dpad.runtime.engines.gpu.engine import GpuEngine


def compiled_engine(
    directory: Path, compiled: bool = True, slots: int | None = None, shards: tuple[Path, ...] | None = None
) -> GpuEngine:
    """The engine on a CPU, in the dtype of the checkpoint; `shards` replace its weights."""
    checkpoint, device = Checkpoint.open(directory), TorchDevice("cpu")
    contract, dtype = contract_of(checkpoint), checkpoint.dtype
    place = (getattr(torch, dtype), device.device)
    with device.running():
        model = load_merged(checkpoint.architecture, checkpoint.config, shards or checkpoint.shards, *place)
    step, decide = TorchProgram(model, contract, dtype, device, compiled), TorchDecide(contract, device)
    opened = ExitStack()
    opened.callback(device.close)
    opened.callback(step.close)
    return GpuEngine("torch-cpu", contract, dtype, device, step, decide, opened, slots=slots)
