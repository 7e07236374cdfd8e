"""ONNX Runtime's GPU engine, run on a simulated device with the CPU provider in place of the CUDA provider.

    with opened(make_bundle("llada")) as engine:
        engine.hardware.counts["upload"]

Only the provider differs; everything else is the code for a GPU, on a device that checks queued operations strictly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints import contract_of
from host_cuda import HostDevice

from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.onnx_cuda import open_onnx_cuda


@contextmanager
def opened(directory: Path) -> Iterator[GpuEngine]:
    """The engine of a checkpoint with its `step.onnx`; at the end all memory must be free."""
    checkpoint, device = Checkpoint.open(directory), HostDevice()
    files = {"path": directory / "step.onnx", "decide": directory / "decide.onnx"}
    own = {"variant": checkpoint.dtype, "provider": "cpu"}
    with open_onnx_cuda(**files, contract=contract_of(checkpoint), device=device, **own) as engine:
        engine.hardware = device  # type: ignore[attr-defined]
        yield engine
    assert device.leaks() == []
    assert device.closed
