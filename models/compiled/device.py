"""`TorchDevice`: implements `Device` with PyTorch alone, on the first GPU or on a CPU.

    device = TorchDevice("cuda")
    address = device.alloc(1 << 20)
    device.tensor(address, torch.bfloat16, (32, 8, 128))      # a view of it
    with device.running():                                    # PyTorch's own kernels go to the device's stream
        ...

A CPU runs the same code, but has no recordings. Memory comes from PyTorch's allocator, so that it does not compete with
the memory that PyTorch caches.
"""

import ctypes
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpad.runtime.engines.gpu.device import ALIGNMENT, Device
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.errors import DpadError, EngineError, EngineUnavailable
from dpad.runtime.show import told

_WIDEST = (torch.complex128, torch.int64, torch.int32, torch.int16, torch.uint8)  # dtypes to copy rows in, widest first


class TorchDevice(Device):
    """One GPU, or the CPU, and a stream of its own; `Device` says what its methods do."""

    def __init__(self, kind: str) -> None:
        """`kind` is "cuda" or "cpu"; raises `EngineUnavailable` for "cuda" if PyTorch sees no GPU."""
        if kind == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("PyTorch sees no CUDA device here; use engine torch-cpu, which runs on the CPU")
        self.device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
        self._areas: dict[int, torch.Tensor] = {}  # by address
        self._pinned: dict[int, torch.Tensor] = {}
        self._starts: list[int] = []  # addresses in order
        self._stream: Any = torch.cuda.Stream(self.device) if kind == "cuda" else None  # type: ignore[no-untyped-call]
        self.stream = int(self._stream.cuda_stream) if self._stream else 0
        self._memory = torch.cuda.graph_pool_handle() if kind == "cuda" else None  # shared by all recordings
        self._recording: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run PyTorch operations on this device's stream; a failure raises `EngineError` with PyTorch's message."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield
        except DpadError:
            raise
        except Exception as error:  # compilers have error classes of their own
            raise EngineError(f"PyTorch: {told(error)}") from error

    def tensor(self, address: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor over memory from `alloc`, which must outlive the tensor.

        Every tensor has a storage of its own. If two views shared one and one of them was written, a compiler would
        compile for the exact offsets of these views.
        """
        size = prod(shape) * dtype.itemsize
        start = self._starts[bisect_right(self._starts, address) - 1]
        assert 0 <= address - start <= self._areas[start].numel() - size, f"{address} is outside the allocated memory"
        return _over(address, size, self.device).view(dtype).view(shape)

    def make_current(self) -> None:
        if self._stream is not None:
            torch.cuda.set_device(self.device)

    def free_memory(self) -> int:
        if self._stream is None:
            return available_memory()
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + cached

    def alloc(self, size: int) -> int:
        """Allocate with PyTorch's allocator; if memory is short, the error has its message."""
        with self.running():
            area = _empty(size + ALIGNMENT, self.device)
        area = area[-area.data_ptr() % ALIGNMENT :]
        address = area.data_ptr()
        self._areas[address] = area
        self._starts = sorted(self._areas)
        return address

    def free(self, address: int) -> None:
        self.synchronise()
        del self._areas[address]
        self._starts.remove(address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        with self.running():
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
        array = memory.numpy()
        self._pinned[array.ctypes.data] = memory
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        del self._pinned[array.ctypes.data]

    def upload(self, address: int, array: NDArray[Any]) -> None:
        with self.running():
            self.tensor(address, torch.uint8, (array.nbytes,)).copy_(_bytes(array), non_blocking=True)

    def download(self, array: NDArray[Any], address: int) -> None:
        with self.running():
            _bytes(array).copy_(self.tensor(address, torch.uint8, (array.nbytes,)), non_blocking=True)

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        numbers = (target, target_pitch, source, source_pitch, width)
        dtype = next(kind for kind in _WIDEST if not any(number % kind.itemsize for number in numbers))

        def lines(address: int, pitch: int) -> torch.Tensor:
            size = (height - 1) * pitch + width
            area = self.tensor(address, torch.uint8, (size,)).view(dtype)
            return area.as_strided((height, width // dtype.itemsize), (pitch // dtype.itemsize, 1))

        with self.running():
            lines(target, target_pitch).copy_(lines(source, source_pitch))

    def fill(self, address: int, value: int, size: int) -> None:
        with self.running():
            self.tensor(address, torch.uint8, (size,)).fill_(value)

    def synchronise(self) -> None:
        if self._stream is not None:
            with self.running():
                self._stream.synchronize()

    def begin_capture(self) -> None:
        """Start PyTorch's own capture; unsafe calls of other threads do not disturb it."""
        if self._stream is None:
            raise EngineError("a CPU records no CUDA graphs")
        with self.running():
            self._recording = torch.cuda.CUDAGraph()
            self._recording.capture_begin(pool=self._memory, capture_error_mode="thread_local")

    def end_capture(self) -> Any:
        graph, self._recording = self._recording, None
        with self.running():
            graph.capture_end()
        return graph

    def launch(self, graph: Any) -> None:
        with self.running():
            graph.replay()

    def free_graph(self, graph: Any) -> None:
        with self.running():
            graph.reset()

    def close(self) -> None:
        """Wait for the stream, drop all memory, and return PyTorch's cached memory to the GPU."""
        self.synchronise()
        self._areas.clear()
        self._starts.clear()
        self._pinned.clear()
        if self._stream is not None:
            torch.cuda.empty_cache()


class _CudaArray:
    """Bytes on a GPU, as an object with `__cuda_array_interface__`."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _over(address: int, size: int, device: torch.device) -> torch.Tensor:
    """The `size` bytes at `address` as a tensor."""
    if device.type == "cuda":
        return torch.as_tensor(_CudaArray(address, size), device=device)
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)


def _empty(size: int, device: torch.device) -> torch.Tensor:
    """A tensor of bytes; on a CPU it comes from numpy, so that pages take no memory until they are written."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    return torch.from_numpy(np.zeros(size, dtype=np.uint8))


def _bytes(array: NDArray[Any]) -> torch.Tensor:
    """The memory of a contiguous array as bytes."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8))
