"""`HostDevice`: CUDA simulated over host memory, strict about everything that a GPU would forgive or crash on.

    device = HostDevice()
    address = device.alloc(64)       # a real address; the bytes are garbage (NaN as floats)
    device.view(address, 64)         # uint8 [64]; HostFault if it is freed or out of bounds

A simulation of hardware that is not there, not a mock of code of ours. What is queued runs
only when someone synchronises, so that reading early or overwriting too soon shows.
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.engines.gpu.device import ALIGNMENT, Device
from dpad.runtime.errors import EngineError

GARBAGE = 0xFF  # NaN in every float type, -1 in every integer type


class HostFault(AssertionError):
    """Something that CUDA or TensorRT leaves undefined, or that would read another's memory."""


@dataclass
class Recording:
    """A captured graph."""

    operations: list[Callable[[], None]] = field(default_factory=list)
    alive: bool = True


@dataclass
class _Region:
    address: int
    size: int
    bytes: NDArray[np.uint8]
    alive: bool = True


class HostDevice(Device):
    """`counts` says how often each method ran; a name in `failing` raises as CUDA would."""

    def __init__(self, memory: int = 4 << 30) -> None:
        """`memory` is that of a small GPU, in bytes."""
        self.stream, self.memory = 7, memory
        self.counts: Counter[str] = Counter()
        self.failing: dict[str, int] = {}  # method -> how many calls succeed before it fails
        self.recording: Recording | None = None
        self._regions: list[_Region] = []
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self.pending: list[Callable[[], None]] = []
        self.closed = False

    def _enter(self, name: str) -> None:
        self.counts[name] += 1
        if name in self.failing:
            if self.failing[name] <= 0:
                raise EngineError(f"{name}: cudaErrorSimulated")
            self.failing[name] -= 1

    def _outside_capture(self, name: str) -> None:
        if self.recording is not None:
            raise EngineError(f"{name}: cudaErrorStreamCaptureUnsupported")

    def make_current(self) -> None:
        """Nothing to do on a host."""
        if self.closed:
            raise HostFault("the device is used after close")

    def free_memory(self) -> int:
        """What is not allocated."""
        return self.memory - self.living()

    def alloc(self, size: int) -> int:
        """Aligned host memory, full of garbage."""
        self._enter("alloc")
        self._outside_capture("alloc")
        array = np.full(size + ALIGNMENT, GARBAGE, dtype=np.uint8)
        skip = -array.ctypes.data % ALIGNMENT
        self._regions.append(_Region(array.ctypes.data + skip, size, array[skip : skip + size]))
        return self._regions[-1].address

    def free(self, address: int) -> None:
        """Waits, as cudaFree does, and fills the memory with garbage; the address is never used again."""
        self._enter("free")
        self.synchronise()
        region = next((r for r in self._regions if r.address == address and r.alive), None)
        if region is None:
            raise HostFault(f"{address} is freed but was not allocated, or is freed twice")
        region.bytes.fill(GARBAGE)
        region.alive = False

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes at `address`, which must lie in one living allocation."""
        for region in self._regions:
            offset = address - region.address
            if 0 <= offset < max(region.size, 1):
                if not region.alive:
                    raise HostFault(f"{address} is used after it was freed")
                if offset + size > region.size:
                    raise HostFault(f"{size} bytes at {address} run over an allocation of {region.size}")
                return region.bytes[offset : offset + size]
        raise HostFault(f"{address} was never allocated")

    def living(self) -> int:
        """Bytes that are allocated now."""
        return sum(region.size for region in self._regions if region.alive)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Host memory that is known to be pinned."""
        self._enter("pinned")
        array = np.full(size, GARBAGE, dtype=np.uint8)
        self._pinned[array.ctypes.data] = array
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Must be what `pinned` gave."""
        if self._pinned.pop(array.ctypes.data, None) is None:
            raise HostFault("pinned memory is freed that was not allocated")

    def _is_pinned(self, array: NDArray[Any]) -> bool:
        start = array.ctypes.data
        return any(base <= start and start + array.nbytes <= base + p.size for base, p in self._pinned.items())

    def _host(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        if not array.flags.c_contiguous:
            raise HostFault("a copy names a host array that is not contiguous")
        if self.recording is not None and not self._is_pinned(array):
            raise EngineError("cudaMemcpyAsync: cudaErrorStreamCaptureUnsupported (pageable memory)")
        buffer = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
        return np.ctypeslib.as_array(buffer)

    def queue(self, operation: Callable[[], None]) -> None:
        """Run `operation` at the next `synchronise`, or record it."""
        (self.pending if self.recording is None else self.recording.operations).append(operation)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copies when the stream gets there."""
        self._enter("upload")
        host = self._host(array)
        self.queue(lambda: np.copyto(self.view(address, host.size), host))

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copies when the stream gets there; until then the array holds garbage."""
        self._enter("download")
        host = self._host(array)
        self.queue(lambda: np.copyto(host, self.view(address, host.size)))

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Copies when the stream gets there, between areas that lie in one allocation each and do not meet."""
        self._enter("copy_2d")
        if min(width, height) < 1 or width > min(target_pitch, source_pitch):
            raise HostFault(f"a copy of {height} lines of {width} bytes at pitches {source_pitch} and {target_pitch}")

        def lines(address: int, pitch: int) -> NDArray[np.uint8]:
            area = self.view(address, (height - 1) * pitch + width)
            return np.lib.stride_tricks.as_strided(area, (height, width), (pitch, 1))

        def copy() -> None:
            ours, theirs = lines(target, target_pitch), lines(source, source_pitch)
            if np.may_share_memory(ours, theirs):
                raise HostFault(f"a copy from {source} to {target} overlaps itself")
            np.copyto(ours, theirs)

        self.queue(copy)

    def fill(self, address: int, value: int, size: int) -> None:
        """Fills when the stream gets there."""
        self._enter("fill")
        self.queue(lambda: self.view(address, size).fill(value))

    def synchronise(self) -> None:
        """Run what is queued; what fails is told afterwards, as CUDA does."""
        self._outside_capture("synchronise")
        queue, self.pending = self.pending, []
        for operation in queue:
            operation()
        self._enter("synchronise")

    def begin_capture(self) -> None:
        """Record from here on."""
        self._enter("begin_capture")
        self._outside_capture("begin_capture")
        self.recording = Recording()

    def end_capture(self) -> Recording:
        """What was recorded."""
        recording, self.recording = self.recording, None
        self._enter("end_capture")
        if recording is None:
            raise EngineError("end_capture: cudaErrorIllegalState")
        return recording

    def launch(self, graph: Recording) -> None:
        """Run a recording when the stream gets there."""
        self._enter("launch")
        if not graph.alive:
            raise HostFault("a graph is launched after it was freed")
        self.pending.extend(graph.operations)

    def free_graph(self, graph: Recording) -> None:
        """Only once."""
        self._enter("free_graph")
        if not graph.alive:
            raise HostFault("a graph is freed twice")
        graph.alive = False

    def close(self) -> None:
        """The stream is gone."""
        self.closed = True

    def leaks(self) -> list[int]:
        """Sizes of what was allocated and not freed, pinned memory included."""
        return [r.size for r in self._regions if r.alive] + [p.size for p in self._pinned.values()]
