"""`HostDevice`: simulates CUDA with host memory; errors that a GPU would ignore or crash on raise `HostFault`.

    device = HostDevice()
    address = device.alloc(64)       # a real address; the bytes are garbage (NaN as floats)
    device.view(address, 64)         # uint8 [64]; HostFault if it is freed or out of bounds

It simulates missing hardware; it is not a mock of the project's code. Queued operations run only when the stream is
synchronised, so that a test notices data that are read or overwritten too early.
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
    """An operation that is undefined in CUDA or TensorRT, or that would read memory of another allocation."""


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
    """`counts` holds the number of calls of each method; a method named in `failing` raises CUDA's error."""

    def __init__(self, memory: int = 4 << 30) -> None:
        """`memory` is the size of the simulated GPU in bytes."""
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
        """The bytes that are not allocated."""
        return self.memory - self.living()

    def alloc(self, size: int) -> int:
        """Allocate aligned host memory, filled with garbage."""
        self._enter("alloc")
        self._outside_capture("alloc")
        array = np.full(size + ALIGNMENT, GARBAGE, dtype=np.uint8)
        skip = -array.ctypes.data % ALIGNMENT
        self._regions.append(_Region(array.ctypes.data + skip, size, array[skip : skip + size]))
        return self._regions[-1].address

    def free(self, address: int) -> None:
        """Wait, as cudaFree does, and fill the memory with garbage; the address is never used again."""
        self._enter("free")
        self.synchronise()
        region = next((r for r in self._regions if r.address == address and r.alive), None)
        if region is None:
            raise HostFault(f"{address} is freed but was not allocated, or is freed twice")
        region.bytes.fill(GARBAGE)
        region.alive = False

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes at `address`, which must be within one allocation that is not freed."""
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
        """The number of bytes that are allocated now."""
        return sum(region.size for region in self._regions if region.alive)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Allocate host memory that counts as pinned."""
        self._enter("pinned")
        array = np.full(size, GARBAGE, dtype=np.uint8)
        self._pinned[array.ctypes.data] = array
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Free memory that must come from `pinned`."""
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
        """Queue a copy to the device."""
        self._enter("upload")
        host = self._host(array)
        self.queue(lambda: np.copyto(self.view(address, host.size), host))

    def download(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy from the device; until it has run, the array holds garbage."""
        self._enter("download")
        host = self._host(array)
        self.queue(lambda: np.copyto(host, self.view(address, host.size)))

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Queue a copy between two areas that do not overlap, each within one allocation."""
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
        """Queue filling an area with `value`."""
        self._enter("fill")
        self.queue(lambda: self.view(address, size).fill(value))

    def synchronise(self) -> None:
        """Run all queued operations; an error is raised afterwards, as in CUDA."""
        self._outside_capture("synchronise")
        queue, self.pending = self.pending, []
        for operation in queue:
            operation()
        self._enter("synchronise")

    def begin_capture(self) -> None:
        """Start recording."""
        self._enter("begin_capture")
        self._outside_capture("begin_capture")
        self.recording = Recording()

    def end_capture(self) -> Recording:
        """End the recording, and return it."""
        recording, self.recording = self.recording, None
        self._enter("end_capture")
        if recording is None:
            raise EngineError("end_capture: cudaErrorIllegalState")
        return recording

    def launch(self, graph: Recording) -> None:
        """Queue a recording."""
        self._enter("launch")
        if not graph.alive:
            raise HostFault("a graph is launched after it was freed")
        self.pending.extend(graph.operations)

    def free_graph(self, graph: Recording) -> None:
        """Free a recording, which may happen only once."""
        self._enter("free_graph")
        if not graph.alive:
            raise HostFault("a graph is freed twice")
        graph.alive = False

    def close(self) -> None:
        """Destroy the stream."""
        self.closed = True

    def leaks(self) -> list[int]:
        """The sizes of allocations that were not freed, including pinned memory."""
        return [r.size for r in self._regions if r.alive] + [p.size for p in self._pinned.values()]
