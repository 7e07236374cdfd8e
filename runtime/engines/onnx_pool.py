"""The pool of an engine in ONNX Runtime: tensors [P, G, D] that a step reads where they lie.

    pool = HostPool(contract, "float32", slots)            # or DevicePool(..., device)
    binding.bind_ortvalue_input(name, pool.values[i])      # once: the pool never moves
    pool.write(new, runs_of(write_slots))

A pool is zero at first. Slots are mostly taken one behind the other, so the rows of a sequence are one copy a tensor.
"""

from abc import ABC, abstractmethod

import numpy as np
import onnxruntime as ort

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.slots import Run, row_bytes

ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # onnx.TensorProto.DataType


class Pool(ABC):
    """Keys and values of every layer in turn; `values` are the tensors, as inputs of a step."""

    values: list[ort.OrtValue]

    @abstractmethod
    def write(self, new: list[ort.OrtValue], runs: list[Run]) -> None:
        """Keep rows of `new`, [B, Q, G, D] each, and return when they are there."""


class HostPool(Pool):
    """In numpy's memory, which ONNX Runtime's CPU provider reads; slots that nobody used yet take none."""

    def __init__(self, contract: StepContract, dtype: str, slots: int) -> None:
        self._shape = (slots, contract.kv_heads, contract.head_size)
        self._arrays = [np.zeros(self._shape, dtype) for _ in range(2 * contract.layers)]
        self.values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._arrays]

    def write(self, new: list[ort.OrtValue], runs: list[Run]) -> None:
        """In one copy a run and tensor."""
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
        self.values = []
        for _ in range(2 * contract.layers):
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, ELEMENT_TYPES[dtype], provider, 0)
            device.fill(value.data_ptr(), 0, slots * self._row)
            self.values.append(value)
        device.synchronise()

    def write(self, new: list[ort.OrtValue], runs: list[Run]) -> None:
        """In one copy a run and tensor."""
        self._device.make_current()
        for value, rows in zip(self.values, new):
            target, source = value.data_ptr(), rows.data_ptr()
            for row, slot, count in runs:
                size = count * self._row
                self._device.copy_2d(target + slot * self._row, size, source + row * self._row, size, size, 1)
        self._device.synchronise()
