"""One step of `TrtEngine` at a time over simulated hardware: recordings, memory, refusals, opening and closing."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_trt import opened

from dpad.runtime.engines.base import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

LENGTH = 64  # canvas


def step_inputs(queries: int = 32, cached: int = 0, rows: int = 8, batch: int = 1, **changes: Any) -> StepInputs:
    """A step over the last `queries` positions of a canvas, which attends the first `cached` ones."""
    rng = np.random.default_rng(batch)
    values: dict[str, Any] = {
        "canvas": rng.integers(2, 120, (batch, LENGTH)),
        "gather_indices": np.tile(np.arange(LENGTH - queries, LENGTH), (batch, 1)),
        "cache_indices": np.tile(np.arange(cached), (batch, 1)),
        "decode_rows": np.tile(np.arange(rows), (batch, 1)),
    }
    return StepInputs(**(values | changes))


REFRESH = step_inputs(LENGTH, write_back=True)
CACHED = step_inputs(32, cached=32)


@pytest.fixture(scope="module")
def directory(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("llada")


def same(a: StepOutputs, b: StepOutputs) -> bool:
    """Equal bit for bit: a recording runs the very same kernels."""
    pairs = [(a.token_ids, b.token_ids), (a.confidence, b.confidence), (a.odds_against, b.odds_against)]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_logits_come_only_when_wanted_and_belong_to_the_caller(directory: Path, engine_of: Any) -> None:
    """Fails if logits are moved for nothing, or the next step overwrites what the caller was given."""
    onnx = engine_of("onnxruntime", "llada")
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        assert engine.step(step_inputs(), cache).logits is None
        kept = engine.step(step_inputs(want_logits=True), cache)
        copy = kept.token_ids.copy(), np.array(kept.logits)
        other = step_inputs(want_logits=True, canvas=np.full((1, LENGTH), 7))
        engine.step(other, cache)
        assert np.array_equal(kept.token_ids, copy[0]) and np.array_equal(kept.logits, copy[1])
        theirs = onnx.step(step_inputs(want_logits=True), onnx.new_cache(1, LENGTH))
        np.testing.assert_allclose(kept.logits, theirs.logits, rtol=1e-4, atol=1e-4)


def test_a_shape_is_captured_the_second_time_and_replayed_from_then_on(directory: Path) -> None:
    """Fails if a shape is captured twice, or its replay is not the step."""
    with opened(directory) as engine:
        cache, counts = engine.new_cache(1, LENGTH), engine.hardware.counts
        captured = []
        answers = []
        for _ in range(5):
            engine.step(REFRESH, cache)
            answers.append(engine.step(CACHED, cache))
            captured.append((counts["begin_capture"], counts["launch"]))
        assert captured == [(0, 0), (2, 0), (2, 2), (2, 4), (2, 6)]
        assert all(same(answer, answers[0]) for answer in answers)
        assert engine.simulation.counts["contexts"] == 4  # one a profile, one a recording
        assert engine.graph_failure is None


def test_a_replay_reads_the_new_inputs(directory: Path) -> None:
    """Fails if a recording repeats the inputs it was made with."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        for token in (5, 6, 7, 8):
            recorded = engine.step(step_inputs(canvas=np.full((1, LENGTH), token)), cache)
        with opened(directory, cuda_graphs=False) as eager:
            fresh = eager.step(step_inputs(canvas=np.full((1, LENGTH), 8)), eager.new_cache(1, LENGTH))
            assert eager.hardware.counts["begin_capture"] == 0
        assert engine.hardware.counts["launch"] == 2
        assert same(recorded, fresh)


def test_each_cache_has_its_own_recording(directory: Path) -> None:
    """Fails if a recording made for one cache reads or writes another's rows."""
    with opened(directory) as engine:
        caches = [engine.new_cache(1, LENGTH) for _ in range(2)]
        canvases = [np.full((1, LENGTH), token) for token in (5, 90)]
        first, later = [], []
        for round_ in range(4):
            for cache, canvas in zip(caches, canvases):
                engine.step(replace(REFRESH, canvas=canvas), cache)
            answers = [engine.step(replace(CACHED, canvas=c), cache) for cache, c in zip(caches, canvases)]
            (later if round_ else first).append(answers)
        assert not same(*first[0])
        assert all(same(a, b) for answers in later for a, b in zip(answers, first[0]))


@pytest.mark.parametrize("method", ["begin_capture", "end_capture", "alloc"])
def test_a_failed_capture_falls_back_and_says_why(directory: Path, method: str) -> None:
    """Fails if a step is lost when it cannot be captured, the reason is lost, or it is tried again."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        first = engine.step(step_inputs(), cache)
        if method == "alloc":  # no memory for a context of its own
            engine._plan.new_context = lambda profile: engine.hardware.alloc(1)
        engine.hardware.failing[method] = 0
        assert all(same(engine.step(step_inputs(), cache), first) for _ in range(3))
        assert engine.graph_failure == f"{method}: cudaErrorSimulated"
        assert engine.hardware.counts[method] == (1 if "capture" in method else engine.hardware.counts[method])
        assert engine.hardware.recording is None


def test_freed_buffers_take_their_recordings_along(directory: Path) -> None:
    """Fails if a recording outlives a buffer that it names."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        for _ in range(3):
            engine.step(REFRESH, cache)
        assert len(engine._graphs) == 1
        del cache
        gc.collect()
        larger = engine.new_cache(4, LENGTH)
        engine.step(step_inputs(LENGTH, batch=4, write_back=True), larger)
        assert len(engine._graphs) == 0
        assert engine.hardware.counts["free_graph"] == 1


def test_a_dropped_cache_lends_its_memory_to_the_next(directory: Path) -> None:
    """Fails if caches leak, or a shorter one cannot use what a longer one left."""
    with opened(directory) as engine:
        addresses = []
        for slots in (LENGTH, LENGTH, 40):
            cache = engine.new_cache(1, slots)
            inputs = step_inputs(slots, gather_indices=np.arange(slots)[None], write_back=True)
            engine.step(inputs, cache)
            addresses.append(cache.buffer.address)
            del cache
            gc.collect()
        assert len(set(addresses)) == 1


def test_idle_memory_makes_room(directory: Path) -> None:
    """Fails if a device without memory is reported in any other way than as such."""
    with opened(directory) as engine:
        engine.hardware.failing["alloc"] = 0
        with pytest.raises(
            EngineError, match=r"MiB for keys and values \(alloc: cudaErrorSimulated\).*smaller batches"
        ):
            engine.step(REFRESH, engine.new_cache(1, LENGTH))
        engine.hardware.failing.clear()
        engine.step(REFRESH, engine.new_cache(1, LENGTH))


@pytest.mark.parametrize("larger", [{"queries": 48}, {"rows": 16}])
def test_what_could_not_grow_is_not_used(directory: Path, larger: dict[str, int]) -> None:
    """Fails if a step writes to rows or logits that were freed to make room for larger ones."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        first = engine.step(step_inputs(), cache)
        engine.hardware.failing["alloc"] = 0
        with pytest.raises(EngineError, match="alloc: cudaErrorSimulated"):
            engine.step(step_inputs(**larger), cache)
        engine.hardware.failing.clear()
        assert same(engine.step(step_inputs(), cache), first)


def test_a_failed_step_leaves_the_engine_usable_and_the_cache_empty(directory: Path) -> None:
    """Fails if a refresh that failed half way counts as done, or its queued copies hit the next step."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        engine.step(REFRESH, cache)
        engine.hardware.failing["download"] = 0
        with pytest.raises(EngineError, match="download: cudaErrorSimulated"):
            engine.step(REFRESH, cache)
        assert not engine.hardware.pending
        engine.hardware.failing.clear()
        with pytest.raises(EngineError, match="no step of this cache has written it"):
            engine.step(CACHED, cache)
        engine.step(REFRESH, cache)
        engine.step(CACHED, cache)


REFUSED: dict[str, tuple[StepInputs, str]] = {
    "position": (step_inputs(gather_indices=np.array([[0, LENGTH]])), "gather_indices holds 64, outside -1 to 63"),
    "pad": (step_inputs(gather_indices=np.array([[-2, 1]])), "gather_indices holds -2"),
    "slot": (step_inputs(cache_indices=np.array([[LENGTH]])), "cache_indices holds 64, outside -1 to 63"),
    "row": (step_inputs(decode_rows=np.array([[32]])), "decode_rows holds 32, outside 0 to 31"),
    "negative row": (step_inputs(decode_rows=np.array([[-1]])), "decode_rows holds -1"),
    "dtype": (
        step_inputs(canvas=np.zeros((1, LENGTH), dtype=np.int32)),
        "canvas must be an int64 array of 2 axes, not a int32 array of 2",
    ),
    "axes": (
        step_inputs(canvas=np.zeros(LENGTH, dtype=np.int64)),
        "canvas must be an int64 array of 2 axes, not a int64 array of 1",
    ),
    "batch of one input": (
        step_inputs(canvas=np.zeros((2, LENGTH), dtype=np.int64)),
        "gather_indices has 1 rows but the canvas has 2",
    ),
    "unwritten and added to": (replace(CACHED, write_back=True), "cache slot 0 is attended but no step"),
    "unwritten": (CACHED, "cache slot 0 is attended but no step of this cache has written it"),
    "R": (step_inputs(rows=17), "R is 17, but the refresh profile of this engine takes 1 to 16; .*--block-length"),
    "no row": (step_inputs(rows=0), "decode_rows has 0 columns, outside this engine's 1 to 512"),
    "no query": (
        step_inputs(queries=0, rows=0, gather_indices=np.zeros((1, 0), dtype=np.int64)),
        "gather_indices has 0 columns",
    ),
    "N": (step_inputs(canvas=np.zeros((1, 600), dtype=np.int64)), "canvas has 600 columns, .* 512; .*--max-length"),
    "Q": (
        step_inputs(gather_indices=np.zeros((1, 513), dtype=np.int64)),
        "gather_indices has 513 columns, .* 1 to 512",
    ),
    "K": (step_inputs(cache_indices=np.full((1, 513), -1)), "cache_indices has 513 columns, .* 0 to 512"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_inputs_are_refused_before_launch(directory: Path, case: str) -> None:
    """Fails if an index that names another's memory, or a shape without a profile, reaches the device."""
    inputs, words = REFUSED[case]
    with opened(directory) as engine:
        with pytest.raises(EngineError, match=words):
            engine.step(inputs, engine.new_cache(1, LENGTH))
        assert engine.simulation.counts["executions"] == 0


def test_batches_and_caches_that_do_not_fit_are_refused(directory: Path) -> None:
    """Fails if a batch over the profile, another engine's cache, or a row outside the cache is accepted."""
    with opened(directory) as engine, opened(directory) as other:
        with pytest.raises(EngineError, match="a step of 5 rows is outside this engine's 1 to 4; .*--max-batch"):
            engine.step(step_inputs(batch=5), engine.new_cache(5, LENGTH))
        with pytest.raises(EngineError, match="a step of 1 rows cannot use a cache of 2"):
            engine.step(step_inputs(), engine.new_cache(2, LENGTH))
        with pytest.raises(EngineError, match="another engine"):
            engine.step(step_inputs(), other.new_cache(1, LENGTH))
        with pytest.raises(EngineError, match="cache slot 63 is used, but this cache has 40 slots"):
            engine.step(REFRESH, engine.new_cache(1, 40))


def test_close_frees_everything_and_is_safe_twice(directory: Path) -> None:
    """Fails if closing leaks, fails the second time, or lets a step through."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        for _ in range(3):
            engine.step(REFRESH, cache)
        engine.close()
        engine.close()
        assert engine.hardware.closed and engine.hardware.leaks() == []
        with pytest.raises(EngineError, match="tensorrt is closed"):
            engine.step(REFRESH, cache)
