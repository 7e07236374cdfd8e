"""`TorchDevice`: `Device` over PyTorch alone, on the first GPU or on a CPU.

    device = TorchDevice("cuda")
    address = device.alloc(1 << 20)
    device.tensor(address, torch.bfloat16, (32, 8, 128))      # a view of it
    with device.running():                                    # PyTorch's own kernels go to the device's stream
        ...

A CPU runs the same code, but for recordings. Memory comes from PyTorch's allocator, so that what it caches and what is
allocated here never compete.
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

_WIDEST = (torch.complex128, torch.int64, torch.int32, torch.int16, torch.uint8)  # elements that rows are copied in


class TorchDevice(Device):
    """One GPU, or the CPU, and a stream of its own; `Device` says what its methods do."""

    def __init__(self, kind: str) -> None:
        """`kind` is "cuda" or "cpu"; raises `EngineUnavailable` where PyTorch sees no GPU."""
        if kind == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("PyTorch sees no CUDA device here; use engine torch-cpu, which runs on the CPU")
        self.device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
        self._areas: dict[int, torch.Tensor] = {}  # by address
        self._pinned: dict[int, torch.Tensor] = {}
        self._starts: list[int] = []  # addresses in order
        self._stream: Any = torch.cuda.Stream(self.device) if kind == "cuda" else None  # type: ignore[no-untyped-call]
        self.stream = int(self._stream.cuda_stream) if self._stream else 0
        self._memory = torch.cuda.graph_pool_handle() if kind == "cuda" else None  # that all recordings share
        self._recording: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """What PyTorch is asked for goes to this stream; what fails is an `EngineError` in PyTorch's words."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                yield
        except DpadError:
            raise
        except Exception as error:  # compilers have trees of their own
            raise EngineError(f"PyTorch: {told(error)}") from error

    def tensor(self, address: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor over memory that `alloc` gave, and that must outlive it.

        It has a storage of its own: a compiler takes two views of one storage for one tensor, and where one of them is
        written, compiles for the offsets that it saw.
        """
        size = prod(shape) * dtype.itemsize
        start = self._starts[bisect_right(self._starts, address) - 1]
        assert 0 <= address - start <= self._areas[start].numel() - size, f"{address} is not within what was allocated"
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
        """Memory of PyTorch's allocator, which says in its own words that there is none left."""
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
        """Capture by PyTorch's own recorder; only this thread's unsafe calls would spoil it."""
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
        """Nothing of the stream is left; memory that PyTorch caches goes back to the GPU."""
        self.synchronise()
        self._areas.clear()
        self._starts.clear()
        self._pinned.clear()
        if self._stream is not None:
            torch.cuda.empty_cache()


class _CudaArray:
    """Bytes on a GPU, as other libraries hand them over."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _over(address: int, size: int, device: torch.device) -> torch.Tensor:
    """The bytes at `address`."""
    if device.type == "cuda":
        return torch.as_tensor(_CudaArray(address, size), device=device)
    return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)


def _empty(size: int, device: torch.device) -> torch.Tensor:
    """Bytes; on a CPU they take no memory until they are written, which PyTorch's own may."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    return torch.from_numpy(np.zeros(size, dtype=np.uint8))


def _bytes(array: NDArray[Any]) -> torch.Tensor:
    """The memory of a contiguous array as bytes."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8))
