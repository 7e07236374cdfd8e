"""The conversion to bfloat16 bits, compared with torch's."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpad.runtime.engines.bfloat16 import from_bits, to_bits


@given(st.lists(st.floats(width=32), min_size=1))
def test_rounds_as_torch_does(values: list[float]) -> None:
    """Fails if a value is rounded differently, or a NaN or an infinity is lost."""
    array = np.array(values, dtype=np.float32)
    np.testing.assert_array_equal(from_bits(to_bits(array)), torch.from_numpy(array).bfloat16().float().numpy())


def test_every_bfloat16_survives() -> None:
    """Fails if a conversion changes a value that bfloat16 can hold."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = from_bits(bits)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(to_bits(values)[number], bits[number])
