"""The pool of an engine in ONNX Runtime: tensors [P, G, D] that a step reads where they lie.

    pool = HostPool(contract, "float32", slots)            # or DevicePool(..., device)
    binding.bind_ortvalue_input(name, pool.values[i])      # once: the pool never moves
    pool.write(new, write_slots)

A pool is zero at first. Slots are mostly taken one behind the other, so the rows of a sequence are one copy a tensor.
"""

from abc import ABC, abstractmethod

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.slots import Run, row_bytes, runs_of

ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # onnx.TensorProto.DataType


class Pool(ABC):
    """Keys and values of every layer in turn; `values` are the tensors, as inputs of a step."""

    values: list[ort.OrtValue]

    def write(self, new: list[ort.OrtValue], write_slots: NDArray[np.int64]) -> None:
        """Keep the rows of `new`, [B, Q, G, D] each, in `write_slots` [B, Q], and return when they are there."""
        self._write(new, runs_of(write_slots))

    @abstractmethod
    def _write(self, new: list[ort.OrtValue], runs: list[Run]) -> None: ...


class HostPool(Pool):
    """In numpy's memory, which ONNX Runtime's CPU provider reads; slots that nobody used yet take none."""

    def __init__(self, contract: StepContract, dtype: str, slots: int) -> None:
        self._shape = (slots, contract.kv_heads, contract.head_size)
        self._arrays = [np.zeros(self._shape, dtype) for _ in range(2 * contract.layers)]
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._arrays]

    def _write(self, new: list[ort.OrtValue], runs: list[Run]) -> None:
        for array, value in zip(self._arrays, new):
            rows = value.numpy().reshape(-1, *self._shape[1:])  # no copy
            for row, slot, count in runs:
                array[slot : slot + count] = rows[row : row + count]


class DevicePool(Pool):
    """In ONNX Runtime's memory on a `device`, which copies the rows there."""

    def __init__(self, contract: StepContract, dtype: str, slots: int, provider: str, device: Device) -> None:
        """`provider` is ONNX Runtime's name of where the device's memory is."""
        self._device, self._row = device, row_bytes(contract, dtype)
        shape = (slots, contract.kv_heads, contract.head_size)
        kind = ELEMENT_TYPES[dtype]
        self.values = [
            ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, provider, 0) for _ in range(2 * contract.layers)
        ]
        for value in self.values:
            device.fill(value.data_ptr(), 0, slots * self._row)
        device.synchronise()

    def _write(self, new: list[ort.OrtValue], runs: list[Run]) -> None:
        self._device.make_current()
        for value, rows in zip(self.values, new):
            target, source = value.data_ptr(), rows.data_ptr()
            for row, slot, count in runs:
                size = count * self._row
                self._device.copy_2d(target + slot * self._row, size, source + row * self._row, size, size, 1)
        self._device.synchronise()
