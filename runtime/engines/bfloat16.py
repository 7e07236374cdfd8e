"""Converts bfloat16, which numpy lacks: arrays are float32 on the host and 16-bit integers for a device.

bits = to_bits(values)        # float32 -> uint16, rounded to the nearest, ties to even
values = from_bits(bits)      # uint16 -> float32, exact
"""

import numpy as np
from numpy.typing import NDArray


def to_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bfloat16 bits nearest to each value; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 value of each bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
