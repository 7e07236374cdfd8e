"""The size of a pool, the runs in which rows are written to it, and its requirements on a GPU."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.contract import StepContract
from dpad.runtime.engines import candidates as found_here
from dpad.runtime.engines import onnx_session
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.slots import pool_size, runs_of
from dpad.runtime.errors import EngineError, InvalidRequest

CONTRACT = StepContract("llada", 2, 2, 1, 32, 50, 49, 1, 0, 4, 512, 8, 8, False)  # 4 canvases of 512


@given(st.lists(st.lists(st.integers(-1, 30), min_size=3, max_size=3), min_size=1, max_size=4))
def test_runs_name_each_row_once(written: list[list[int]]) -> None:
    """Fails if a row is omitted or written to another slot, padding is written, or adjacent runs are not merged."""
    flat = [slot for row in written for slot in row]
    runs = runs_of(np.array(written))
    copied = [(row + i, slot + i) for row, slot, count in runs for i in range(count)]
    assert copied == [(row, slot) for row, slot in enumerate(flat) if slot >= 0]
    for (row, slot, count), after in pairwise(runs):
        assert (row + count, slot + count) != after[:2]


@pytest.mark.parametrize("asked", [1, 0, -3, 2**40, 10**60])
def test_a_pool_that_cannot_be_is_refused(asked: int) -> None:
    """Fails if an invalid size reaches numpy or a GPU, or the error lacks the possible sizes."""
    with pytest.raises(InvalidRequest, match="slots"):
        pool_size(CONTRACT, 1024, 1 << 30, asked)


def test_the_size_of_a_pool_by_default() -> None:
    """Fails if the default is below the contract's limits, above half of free memory, or less than one canvas."""
    assert pool_size(CONTRACT, 1000, 1 << 40) == 2049
    assert pool_size(CONTRACT, 1000, 2_000_000) == 1000
    assert pool_size(CONTRACT, 1000, 600_000) == 513
    assert pool_size(CONTRACT, 1000, 600_000, 600) == 600
    with pytest.raises(InvalidRequest, match="from 2 to 600"):
        pool_size(CONTRACT, 1000, 600_000, 601)
    with pytest.raises(EngineError, match="set slots"):
        pool_size(CONTRACT, 1000, 500_000)


def test_a_pool_on_cuda_needs_bindings(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if ONNX Runtime's GPU build without cuda-bindings gives a traceback."""
    monkeypatch.setattr(onnx_session, "require_provider", lambda provider: None)
    version = found_here.library_version
    monkeypatch.setattr(found_here, "library_version", lambda name: None if name == "cuda-bindings" else version(name))
    found = {each.name: each.obstacle for each in candidates(Bundle.open(whole), Machine("", Gpu("test", "9.0"), ""))}
    assert found["onnxruntime-cuda"] == "cuda-bindings is not installed (pip install '.[gpu]' in a checkout of dpad)"
    assert found["onnxruntime-cpu"] is None
