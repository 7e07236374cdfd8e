"""Recordings of steps and warm-up, on simulated hardware."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import run
from host_trt import opened
from test_trt_step import CACHED, REFRESH, same, step_inputs

from dpad.runtime.decoding.likely import likely_rows
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import Full, Gaussian
from dpad.runtime.engines.gpu import graphs


@pytest.fixture(scope="module")
def directory(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("llada")


def test_a_failed_recording_gives_room_and_is_tried_again(directory: Path) -> None:
    """Fails if one failure turns recording off, does not free memory, or is retried in every pass."""
    with opened(directory) as engine:
        counts = engine.hardware.counts
        engine.step(REFRESH)
        for length in (33, 34, 35):
            for _ in range(2):
                engine.step(step_inputs(length))
        assert engine.recordings == 3
        engine.hardware.failing["end_capture"] = 0
        first = engine.step(CACHED)
        for _ in range(8):
            assert same(engine.step(CACHED), first)
        assert counts["begin_capture"] == 4 and engine.recordings == 1
        assert "cudaErrorSimulated" in str(engine.graph_failure)
        engine.hardware.failing.clear()
        for _ in range(4):
            assert same(engine.step(CACHED), first)
        assert engine.recordings == 2 and engine.graph_failure is None
        launched = counts["launch"]
        assert same(engine.step(CACHED), first) and counts["launch"] == launched + 1


def test_a_shape_that_always_fails_is_tried_ever_less(directory: Path) -> None:
    """Fails if a recording that always fails is retried in more than a few passes."""
    with opened(directory) as engine:
        engine.hardware.failing["begin_capture"] = 0
        for _ in range(100):
            engine.step(REFRESH)
        assert 3 <= engine.hardware.counts["begin_capture"] <= 6


def test_the_least_used_recording_makes_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the number of recordings is not limited, or a used one is dropped before an unused one."""
    monkeypatch.setattr(graphs, "MOST", 2)
    with opened(directory) as engine:
        for length in (33, 34, 33, 35, 33):
            for _ in range(2):
                engine.step(step_inputs(length))
        assert engine.recordings == 2 and engine.hardware.counts["begin_capture"] == 3


def test_steps_can_be_launched_without_their_recordings(directory: Path) -> None:
    """Fails if the eager launch for gpu-check replays a recording, or drops recordings."""
    with opened(directory) as engine:
        engine.step(REFRESH)
        recorded = [engine.step(CACHED) for _ in range(3)][-1]
        launched = engine.hardware.counts["launch"]
        with engine.eagerly():
            assert same(engine.step(CACHED), recorded)
            assert engine.hardware.counts["launch"] == launched
        assert same(engine.step(CACHED), recorded) and engine.hardware.counts["launch"] == launched + 1


def test_after_warming_up_a_request_of_the_defaults_only_replays(directory: Path) -> None:
    """Fails if warm-up did not record a cached step of the default options, or recordings give other tokens."""
    options = GenerationOptions(gen_length=64, block_length=16, schedule=Gaussian(), early_termination=False)
    requests = [Request(tuple(np.random.default_rng(seed).integers(2, 100, 20).tolist())) for seed in (0, 1)]
    told: list[tuple[int, int]] = []
    with opened(directory) as cold, opened(directory) as warm:
        warm.simulation.most_contexts = 999
        rows = likely_rows(warm.contract, {"default": {"gen_length": 64, "block_length": 16}})
        warm.warm_up(rows, 600.0, lambda done, total: told.append((done, total)))
        assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
        assert warm.slots.free == warm.slots.most
        executed = warm.simulation.counts["executions"]
        for cache in ("dual", "prefix"):
            asked: Any = {**vars(options), "cache": cache}
            ours, theirs = (run(engine, requests, GenerationOptions(**asked)) for engine in (warm, cold))
            assert [(row.tokens, row.committed) for row in ours] == [(row.tokens, row.committed) for row in theirs]
        assert warm.simulation.counts["replays"] > 0
        refreshes = 2 * len(requests) * (64 // 16)
        assert warm.simulation.counts["executions"] - executed <= 3 * refreshes


def test_warming_up_ends_where_nothing_more_can_be_recorded(directory: Path) -> None:
    """Fails if warm-up drops recordings to make others when there is no more room."""
    with opened(directory) as engine:
        engine.simulation.most_contexts = 8
        engine.warm_up([16], 600.0)
        assert engine.recordings == 2 and engine.hardware.counts["begin_capture"] == 5
        assert "no memory" in str(engine.graph_failure)


def test_warming_up_ends_in_time(directory: Path) -> None:
    """Fails if warm-up with a limit of 0 seconds records everything."""
    with opened(directory) as engine:
        engine.warm_up([16], 0.0)
        assert engine.recordings == 0
        engine.warm_up([10**9, 0], 600.0)  # no step has so many rows
        assert engine.recordings == 1


@pytest.mark.parametrize(
    ("preset", "rows"),
    [
        ({"schedule": Full(), "gen_length": 96}, {32, 64, 96}),
        ({"schedule": Gaussian(k=0, scale=9, window=40), "gen_length": 96}, {32, 52, 72}),
    ],
)
def test_likely_rows_are_those_of_the_options(engine_of: Any, preset: dict[str, Any], rows: set[int]) -> None:
    """Fails if the likely rows omit the suffix that the schedule keeps, or the block."""
    contract = engine_of("torch", "llada").contract
    assert rows <= set(likely_rows(contract, {"long": preset}))
