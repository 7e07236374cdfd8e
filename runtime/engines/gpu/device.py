"""`Device`: the interface to CUDA that an engine on a GPU needs; `cuda.py` implements it.

    address = device.alloc(1024)
    device.upload(address, host)          # queued on the device's own stream
    device.synchronise()                  # all queued work is done

The engine takes a device as an argument, so the same class runs on CUDA and, in the
tests, on host memory that checks every access.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256  # bytes; TensorRT requires it of every address


def aligned(size: int) -> int:
    """`size` in bytes, rounded up to the next address that a tensor may have."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Device(Protocol):
    """One GPU with one stream. Addresses are integers, sizes are bytes.

    Every method may raise an `EngineError` with CUDA's name of the error. `upload`, `download`, `copy_2d`, `fill` and
    `launch` are queued on `stream` in order; their host arrays must not change until `synchronise` has returned.
    """

    stream: int

    def make_current(self) -> None:
        """Let the calling thread use this device."""

    def free_memory(self) -> int:
        """Bytes that could be allocated now."""

    def alloc(self, size: int) -> int:
        """Address of `size` bytes, aligned to `ALIGNMENT`; what they hold is undefined."""

    def free(self, address: int) -> None:
        """Free memory from `alloc`; no queued work may still use it."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory [size], which the device reads and writes without an intermediate copy."""

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Free memory from `pinned`."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous host array to `address`."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from `address` into a contiguous host array."""

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Copy `height` lines of `width` bytes on the device. A pitch is the distance of two lines' first bytes.

        The two areas must not overlap, and no pitch may be less than `width`.
        """

    def fill(self, address: int, value: int, size: int) -> None:
        """Set `size` bytes to `value`."""

    def synchronise(self) -> None:
        """Wait until all queued work is done."""

    def begin_capture(self) -> None:
        """Start a capture: work queued from now on is recorded instead of executed."""

    def end_capture(self) -> Any:
        """End the capture, even on failure; returns the recorded CUDA graph, ready to launch."""

    def launch(self, graph: Any) -> None:
        """Queue a recorded graph."""

    def free_graph(self, graph: Any) -> None:
        """Free a recorded graph."""

    def close(self) -> None:
        """Destroy the stream; safe to call twice."""
