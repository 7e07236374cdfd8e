"""`Rows`: keys and values on the device, either the pool of an engine or the new rows of a step.

    pool, new = Rows(device, tensors=64, count=4096, row_bytes=8192), Rows(device, 64, 512, 8192)
    for row, slot, count in runs_of(write_slots):
        pool.copy(slot, new, row, count)     # queued behind the step that wrote `new`

One tensor holds the keys or the values of one layer. All tensors lie in one allocation at equal distances, so that one
2D copy moves a row of every tensor. No address ever changes, so CUDA graphs may hold them.
"""

from dpad.runtime.engines.gpu.device import Device, aligned
from dpad.runtime.errors import EngineError


class Rows:
    """`count` rows in each of `tensors` tensors; tensor i is [count, G, D] at address `at(i)`, uninitialised."""

    def __init__(self, device: Device, tensors: int, count: int, row_bytes: int) -> None:
        """Allocate the rows; if the device lacks memory, an `EngineError` names the size and says what to do."""
        self.count = count
        self._device, self._tensors, self._row_bytes = device, tensors, row_bytes
        self._stride = aligned(count * row_bytes)
        size = self._stride * tensors
        try:
            self._address = device.alloc(size)
        except EngineError as error:
            raise EngineError(
                f"the GPU has no {size / 2**20:.0f} MiB free for {count} rows of keys and values ({error}); open the "
                "bundle with fewer slots"
            ) from error

    def at(self, tensor: int) -> int:
        """The address of one tensor."""
        return self._address + tensor * self._stride

    def zero(self, row: int) -> None:
        """Queue zeros for `row` of every tensor."""
        for tensor in range(self._tensors):
            self._device.fill(self.at(tensor) + row * self._row_bytes, 0, self._row_bytes)

    def copy(self, to: int, source: "Rows", start: int, count: int) -> None:
        """Queue the copy of `count` rows of every tensor, from row `start` of `source` to row `to`."""
        assert to + count <= self.count and start + count <= source.count
        target, origin = self._address + to * self._row_bytes, source._address + start * self._row_bytes
        self._device.copy_2d(target, self._stride, origin, source._stride, count * self._row_bytes, self._tensors)

    def close(self) -> None:
        """Free the allocation; no queued work may still use it."""
        self._device.free(self._address)
