"""Compares `TorchDevice` on a CPU, which runs the GPU's code, with plain copies of host memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpad.models.compiled.device import TorchDevice
from dpad.runtime.engines.gpu.device import ALIGNMENT
from dpad.runtime.errors import EngineError, EngineUnavailable

KINDS = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest) -> TorchDevice:
    return TorchDevice(request.param)


def test_what_is_uploaded_comes_back(device: TorchDevice) -> None:
    """Fails if an address is not aligned, or bytes are written outside it."""
    addresses = [device.alloc(size) for size in (1, 300, 4096)]
    assert not any(address % ALIGNMENT for address in addresses)
    sent = np.arange(70, dtype=np.float32).reshape(7, 10)
    device.fill(addresses[2], 255, 4096)
    device.upload(addresses[2] + 256, sent)
    found, around = np.empty_like(sent), np.empty(4096, dtype=np.uint8)
    device.download(found, addresses[2] + 256)
    device.download(around, addresses[2])
    device.synchronise()
    assert np.array_equal(found, sent)
    assert (around[:256] == 255).all() and (around[256 + 280 :] == 255).all()
    view = device.tensor(addresses[2] + 256, torch.float32, (7, 10))
    assert np.array_equal(view.cpu().numpy(), sent)
    device.close()


@given(st.data())
def test_copies_in_two_dimensions_are_those_of_lines(data: st.DataObject) -> None:
    """Fails if a copy of any width, pitch and start differs from a copy line by line."""
    device, size = TorchDevice("cpu"), 4096
    unit = data.draw(st.sampled_from([1, 2, 4, 8, 16, 24]))
    width, height = unit * data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    target_pitch, source_pitch = (width + unit * data.draw(st.integers(0, 9)) for _ in range(2))
    target, source = device.alloc(size), device.alloc(size)
    starts = [unit * data.draw(st.integers(0, 20)) for _ in range(2)]
    rng = np.random.default_rng(0)
    held = [rng.integers(0, 255, size, dtype=np.uint8) for _ in range(2)]
    for address, array in zip((target, source), held):
        device.upload(address, array)
    device.copy_2d(target + starts[0], target_pitch, source + starts[1], source_pitch, width, height)
    expected = held[0].copy()
    for line in range(height):
        at, of = starts[0] + line * target_pitch, starts[1] + line * source_pitch
        expected[at : at + width] = held[1][of : of + width]
    found = np.empty_like(expected)
    device.download(found, target)
    device.synchronise()
    assert np.array_equal(found, expected)


def test_memory_that_is_not_there(device: TorchDevice) -> None:
    """Fails if a failed allocation does not raise PyTorch's message, or the device cannot be used afterwards."""
    with pytest.raises(EngineError, match="PyTorch: .*(allocate|out of memory)"):
        device.alloc(1 << 50)
    device.free(device.alloc(64))


def test_a_cpu_records_nothing() -> None:
    """Fails if a recording on a CPU gives an error of PyTorch, or the error for a missing GPU lacks the way out."""
    with pytest.raises(EngineError, match="records no CUDA graphs"):
        TorchDevice("cpu").begin_capture()
    if not torch.cuda.is_available():
        with pytest.raises(EngineUnavailable, match="use engine torch-cpu"):
            TorchDevice("cuda")
