"""`KvPool`: device memory for keys and values, used again instead of allocated again.

    pool = KvPool(device, tensors=64, on_free=graphs.forget)   # told the address
    buffer = pool.take(bytes_of_one_tensor)
    pool.give(buffer)                       # from any thread, also while another thread steps

One `Buffer` is one allocation that holds all tensors of a cache at equal distances. What is
given back is lent again to whoever fits, so that a service settles on a few addresses and
the CUDA graphs that hold them stay valid.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dpad.runtime.engines.gpu.device import Device, aligned
from dpad.runtime.errors import EngineError


@dataclass(frozen=True)
class Buffer:
    """`tensors` regions of `stride` bytes each, from `address`."""

    address: int
    stride: int
    tensors: int

    def at(self, index: int) -> int:
        """Address of one tensor."""
        return self.address + index * self.stride


class KvPool:
    """Buffers of one device. `give` may be called at any time, the rest under the engine's lock."""

    def __init__(self, device: Device, tensors: int, on_free: Callable[[int], None]) -> None:
        self._device, self._tensors, self._on_free = device, tensors, on_free
        self._returned: deque[Buffer] = deque()  # appending is atomic: a garbage collector may do it
        self._idle: list[Buffer] = []
        self._all: list[Buffer] = []

    def take(self, stride: int) -> Buffer:
        """The smallest idle buffer whose tensors hold `stride` bytes, else a new one.

        Idle buffers that are all too small are freed first: what outgrew them once will
        again. Raises `EngineError` if the device has no memory left.
        """
        self._collect()
        fitting = [buffer for buffer in self._idle if buffer.stride >= stride]
        if fitting:
            buffer = min(fitting, key=lambda buffer: buffer.stride)
            self._idle.remove(buffer)
            return buffer
        while self._idle:
            self._free(self._idle.pop())
        stride = aligned(max(stride, 1))
        try:
            address = self._device.alloc(stride * self._tensors)
        except EngineError as error:
            size = stride * self._tensors / 2**20
            raise EngineError(f"no {size:.0f} MiB for keys and values ({error}); use smaller batches") from error
        buffer = Buffer(address, stride, self._tensors)
        self._all.append(buffer)
        return buffer

    def copy(self, target: Buffer, to: int, source: Buffer, start: int, size: int) -> None:
        """Queue a copy of `size` bytes of every tensor, from byte `start` of it in `source` to byte `to` in `target`.

        Tensors lie at equal distances, so it is one copy, however many they are.
        """
        assert start + size <= source.stride and to + size <= target.stride
        self._device.copy_2d(
            target.address + to, target.stride, source.address + start, source.stride, size, self._tensors
        )

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back. What is queued may still use it: whoever gets it next queues behind that."""
        self._returned.append(buffer)

    def close(self) -> None:
        """Free everything, lent or idle."""
        for buffer in list(self._all):
            self._free(buffer)
        self._idle.clear()
        self._returned.clear()

    def _collect(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())

    def _free(self, buffer: Buffer) -> None:
        self._on_free(buffer.address)
        self._device.free(buffer.address)
        self._all.remove(buffer)  # not before: what could not be freed now is when the engine closes
