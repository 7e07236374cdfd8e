"""Keys and values on the device: the pool of an engine, and the rows that a step has just computed.

    pool, new = Rows(device, tensors=64, count=4096, row_bytes=8192), Rows(device, 64, 512, 8192)
    for row, slot, count in runs_of(write_slots):
        pool.copy(slot, new, row, count)     # queued behind the step that wrote `new`

One tensor is the keys or the values of one layer. All of them lie in one allocation at equal distances, so that a row
of every tensor moves in one copy. No address ever changes, so CUDA graphs may hold them.
"""

from dpad.runtime.engines.gpu.device import Device, aligned
from dpad.runtime.errors import EngineError


class Rows:
    """`count` rows in each of `tensors` tensors: [count, G, D] from address `at(i)`. What they hold is undefined."""

    def __init__(self, device: Device, tensors: int, count: int, row_bytes: int) -> None:
        """Raises `EngineError`, naming the size and the way out, if the device lacks the memory."""
        self.count = count
        self._device, self._tensors, self._row_bytes = device, tensors, row_bytes
        self._stride = aligned(count * row_bytes)
        size = self._stride * tensors
        try:
            self._address = device.alloc(size)
        except EngineError as error:
            raise EngineError(
                f"no {size / 2**20:.0f} MiB for {count} rows of keys and values ({error}); open it with fewer slots"
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
        """Free all of them; nothing queued may still use them."""
        self._device.free(self._address)
