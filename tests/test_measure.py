"""The common parts of the benchmarks: turns, spreads, memory and the bundle to measure."""

import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import write_source

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
from dpad.runtime.bundle.bundle import Bundle  # noqa: E402


def test_turns_rotate_and_the_first_round_is_dropped() -> None:
    """Fails if one contender always runs first, or the warm-up round is counted."""
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}  # type: ignore[misc]
    results = measure.interleaved(calls, rounds=3)
    assert "".join(order) == "abcbcacababc"
    assert results == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}


def test_spread_and_ratios_of_known_numbers() -> None:
    """Fails if quartiles are wrong, or ratios are not taken in each round."""
    assert measure.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert measure.spread([1.23456, 1.23456]) == {"median": 1.235, "q1": 1.235, "q3": 1.235}
    slow, base = [2.0, 30.0, 8.0], [1.0, 10.0, 8.0]
    assert measure.paired(slow, base) == {"median": 2.0, "q1": 1.5, "q3": 2.5}
    with pytest.raises(ValueError, match="shorter"):
        measure.paired([1.0, 2.0], [1.0])


def test_timed_takes_the_median_of_its_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the pause of a turn is timed, or the median of repetitions is not used."""
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 22.0])
    slept: list[float] = []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    assert measure.timed(lambda: None, repeat=3, pause=0.5)() == 2.0
    assert slept == [0.5]


def test_memory_of_a_fresh_process() -> None:
    """Fails if memory is not in bytes, or a child process starts at its parent's peak."""
    np.ones(400 << 20, dtype=np.uint8)
    assert measure.peak_memory() > 400 << 20
    assert measure.in_child(measure.peak_memory) < 300 << 20


def test_a_bundle_of_its_own(tmp_path: Path) -> None:
    """Fails if the limits do not reach the export, or the bundle is not removed after its use."""
    with measure.bundle_for(None, str(write_source(tmp_path / "source")), max_batch=9, max_length=5000) as directory:
        contract = Bundle.open(directory).manifest.contract
    assert (contract.max_batch, contract.max_length) == (9, 5000)
    assert not directory.exists()
