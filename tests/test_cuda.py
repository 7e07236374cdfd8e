"""`CudaDevice`: its operations on a GPU; without a GPU every call must reach CUDA and raise CUDA's error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import export, write_source
from cuda.bindings import runtime as cudart

from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.progress import Progress
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.gpu.cuda import CudaDevice
from dpad.runtime.engines.machine import Machine
from dpad.runtime.errors import EngineError

HAS_GPU = Machine.current().gpu is not None
with_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU here")
without_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")

HOST = np.zeros(16, dtype=np.uint8)
CALLS: dict[str, Callable[[CudaDevice], Any]] = {
    "cudaSetDevice": lambda device: device.make_current(),
    "cudaMalloc": lambda device: device.alloc(16),
    "cudaFree": lambda device: device.free(256),
    "cudaMemGetInfo": lambda device: device.free_memory(),
    "cudaHostAlloc": lambda device: device.pinned(16),
    "cudaFreeHost": lambda device: device.free_pinned(HOST),
    "cudaMemcpyAsync": lambda device: device.upload(256, HOST),
    "cudaMemcpyAsync ": lambda device: device.download(HOST, 256),
    "cudaMemcpy2DAsync": lambda device: device.copy_2d(256, 16, 512, 16, 16, 1),
    "cudaMemsetAsync": lambda device: device.fill(256, 0, 16),
    "cudaStreamSynchronize": lambda device: device.synchronise(),
    "cudaStreamBeginCapture": lambda device: device.begin_capture(),
    "cudaStreamEndCapture": lambda device: device.end_capture(),
    "cudaGraphLaunch": lambda device: device.launch(cudart.cudaGraphExec_t(0)),
    "cudaGraphExecDestroy": lambda device: device.free_graph(cudart.cudaGraphExec_t(0)),
    "cudaStreamDestroy": lambda device: device.close(),
}


@without_gpu
@pytest.mark.parametrize("name", CALLS)
def test_every_call_fails_by_cudas_own_name(name: str) -> None:
    """Fails if a call has wrong arguments, or its error is hidden or not typed."""
    device = object.__new__(CudaDevice)
    device._index, device._stream, device.stream = 0, cudart.cudaStream_t(0), 0
    with pytest.raises(EngineError, match=rf"{name.strip()}: cudaError\w+ \(.+\)"):
        CALLS[name](device)


@without_gpu
def test_without_a_driver_there_is_no_device() -> None:
    """Fails if a machine without a GPU gives anything but a typed error."""
    with pytest.raises(EngineError, match="cudaSetDevice: cudaError"):
        CudaDevice()


@with_gpu
def test_copies_and_recordings() -> None:
    """Fails if a copy, a fill, or the replay of a recording gives wrong data on a GPU."""
    device = CudaDevice()
    address, host = device.alloc(64), device.pinned(64)
    assert address % 256 == 0
    host[:] = np.arange(64)
    device.upload(address, host)
    device.begin_capture()
    device.download(host, address)
    graph = device.end_capture()
    device.synchronise()
    host[:] = 0
    device.launch(graph)
    device.synchronise()
    assert (host == np.arange(64)).all()
    device.fill(address, 7, 64)
    device.launch(graph)
    device.synchronise()
    assert (host == 7).all()
    device.upload(address, np.arange(64, dtype=np.uint8))
    device.copy_2d(address + 32, 16, address, 8, 4, 2)  # lines of 4 bytes: 0-3 and 8-11
    device.launch(graph)
    device.synchronise()
    assert host[32:36].tolist() == [0, 1, 2, 3] and host[48:52].tolist() == [8, 9, 10, 11]
    assert host[36:48].tolist() == [*range(36, 48)]
    device.free_graph(graph)
    device.free(address)
    device.free_pinned(host)
    device.close()
    device.close()


@with_gpu
def test_a_plan_built_here_agrees_with_torch(tmp_path: Path) -> None:
    """Fails if a plan of TensorRT-RTX on this GPU fails parity."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", targets=("tensorrt-rtx",), dtypes=("float16",))
    [plan] = [candidate for candidate in candidates(bundle, Machine.current()) if candidate.file.endswith(".plan")]
    if plan.obstacle is not None:
        pytest.skip(plan.obstacle)
    require_passed(compare_bundle(bundle, Progress(), engines=[plan.name], steps=2))
