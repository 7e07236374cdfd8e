"""`Device`: the few things an engine on a GPU asks of CUDA; `cuda.py` is CUDA itself.

    address = device.alloc(1024)
    device.upload(address, host)          # queued on the device's own stream
    device.synchronise()                  # everything queued has happened

The engine takes a device as an argument, so the same class runs over CUDA and, in the
tests, over host memory that checks every access.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256  # bytes; what TensorRT asks of every address it is given


def aligned(size: int) -> int:
    """`size` in bytes, rounded up to the next address that a tensor may have."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Device(Protocol):
    """One GPU with one stream. Addresses are integers, sizes are bytes.

    Everything raises `EngineError` with CUDA's own name of the error. `upload`, `download`, `copy_2d`, `fill` and
    `launch` are queued on `stream`, in order; host memory that they name must stay as it is until `synchronise`.
    """

    stream: int

    def make_current(self) -> None:
        """Let the calling thread use this device."""

    def free_memory(self) -> int:
        """Bytes that could be allocated now."""

    def alloc(self, size: int) -> int:
        """Address of `size` bytes, aligned to `ALIGNMENT`; what they hold is undefined."""

    def free(self, address: int) -> None:
        """Give back what `alloc` gave; nothing queued may still use it."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory [size], which the device reads and writes without a copy in between."""

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Give back what `pinned` gave."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous host array to `address`."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from `address` into a contiguous host array."""

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Copy `height` lines of `width` bytes on the device; a pitch is from one line's first byte to the next's.

        The two areas must not overlap, and no pitch may be less than `width`.
        """

    def fill(self, address: int, value: int, size: int) -> None:
        """Set `size` bytes to `value`."""

    def synchronise(self) -> None:
        """Wait until all that was queued has happened."""

    def begin_capture(self) -> None:
        """From here on, what is queued is recorded instead."""

    def end_capture(self) -> Any:
        """The recording since `begin_capture`, ready to launch; ends capturing even where it fails."""

    def launch(self, graph: Any) -> None:
        """Queue a whole recording."""

    def free_graph(self, graph: Any) -> None:
        """Give back a recording."""

    def close(self) -> None:
        """Give the stream back; safe to call twice."""
