"""`CudaDevice`: a `Device` on the first NVIDIA GPU, which uses cuda-bindings alone.

    device = CudaDevice()          # EngineError: "cudaStreamCreateWithFlags: cudaErrorInsufficientDriver ..."

It uses the primary context, as TensorRT does.
"""

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.errors import EngineError


class CudaDevice(Device):
    """The first GPU, with a stream that does not wait for the default stream; `Device` documents the methods."""

    def __init__(self) -> None:
        """Open the first GPU; raises `EngineError` if there is no usable driver or GPU."""
        self._stream: Any = None
        self.make_current()
        self._stream = _call("cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def make_current(self) -> None:
        _call("cudaSetDevice", 0)

    def free_memory(self) -> int:
        return int(_call("cudaMemGetInfo"))

    def alloc(self, size: int) -> int:
        """Call cudaMalloc, which aligns to 256 bytes or more."""
        return int(_call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Call cudaFree, which waits for the device."""
        _call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        address = int(_call("cudaHostAlloc", size, cudart.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        _call("cudaFreeHost", array.ctypes.data)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        _call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, height, kind, self._stream)

    def fill(self, address: int, value: int, size: int) -> None:
        _call("cudaMemsetAsync", address, value, size, self._stream)

    def synchronise(self) -> None:
        _call("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Capture this stream, in the mode in which unsafe calls of other threads do not invalidate the capture."""
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Any:
        graph = _call("cudaStreamEndCapture", self._stream)
        try:
            return _call("cudaGraphInstantiate", graph, 0)
        finally:
            _call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        _call("cudaGraphLaunch", graph, self._stream)

    def free_graph(self, graph: Any) -> None:
        _call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            _call("cudaStreamDestroy", stream)


def _call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its result, if any; an `EngineError` has CUDA's error name."""
    status, *results = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        cudart.cudaGetLastError()  # clears an error that is not sticky, so that the next call does not return it
        _, text = cudart.cudaGetErrorString(status)
        words = text.decode(errors="replace") if isinstance(text, bytes) else text
        raise EngineError(f"{name}: {status.name} ({words})")
    return results[0] if results else None
