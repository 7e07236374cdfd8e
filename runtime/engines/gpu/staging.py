"""`Staging`: a step's small tensors side by side, in page-locked host memory and on the device.

    staging = Staging(device, size)
    fields, used = staging.fields({"token_ids": ("int64", (2, 32))})
    fields["token_ids"].array, fields["token_ids"].address

One copy transfers all of them. A tensor's address depends only on the shapes, so that a CUDA graph can record the copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.engines.gpu.device import Device, aligned

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape


@dataclass(frozen=True)
class Field:
    """One tensor: its `array` on the host and its `address` on the device."""

    array: NDArray[Any]
    address: int


class Staging:
    """A buffer of `size` bytes on the host and one on the device."""

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self._address = device.alloc(size)
        self._host = device.pinned(size)

    def fields(self, shapes: Shapes) -> tuple[dict[str, Field], int]:
        """The location of each tensor, and the bytes that all of them take."""
        fields, offset = {}, 0
        for name, (dtype, shape) in shapes.items():
            count = prod(shape)
            array = np.frombuffer(self._host, dtype, count, offset).reshape(shape)
            fields[name] = Field(array, self._address + offset)
            offset += aligned(array.nbytes)
        return fields, offset

    def upload(self, used: int) -> None:
        """Queue the copy of the first `used` bytes to the device."""
        self._device.upload(self._address, self._host[:used])

    def download(self, used: int) -> None:
        """Queue the copy of the first `used` bytes to the host."""
        self._device.download(self._host[:used], self._address)

    def close(self) -> None:
        """Free both buffers."""
        self._device.free(self._address)
        self._device.free_pinned(self._host)


def bytes_of(shapes: Shapes) -> int:
    """Bytes that `Staging.fields` needs for `shapes`."""
    return sum(aligned(prod(shape) * np.dtype(dtype).itemsize) for dtype, shape in shapes.values())
