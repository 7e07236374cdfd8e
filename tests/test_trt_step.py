"""Single steps of `GpuEngine` on simulated hardware: recordings, refusals, failures, closing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from host_trt import opened

from dpad.runtime.engines.step import Decisions, Sampling, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

LENGTH = 64  # tokens of the canvas


def step_inputs(queries: int = 32, cached: int = 0, rows: int = 8, batch: int = 1, **changes: Any) -> StepInputs:
    """A step with the last `queries` positions of a canvas that attends the slots 1 to `cached`."""
    rng = np.random.default_rng(batch)
    values: dict[str, Any] = {
        "canvas": rng.integers(2, 120, (batch, LENGTH)),
        "gather_indices": np.tile(np.arange(LENGTH - queries, LENGTH), (batch, 1)),
        "cache_indices": np.tile(np.arange(1, cached + 1), (batch, 1)),
        "decode_rows": np.tile(np.arange(rows), (batch, 1)),
    }
    return StepInputs(**(values | changes))


def sampling(batch: int = 1, rows: int = 8) -> Sampling:
    """High temperatures with few tokens; the last sequence takes the likeliest token that is not banned."""
    return Sampling(
        uniform=np.random.default_rng(3).random((batch, rows), dtype=np.float32),
        temperature=np.array([0.9] * (batch - 1) + [0.0], dtype=np.float32),
        top_k=np.full(batch, 20),
        top_p=np.full(batch, 0.9, dtype=np.float32),
        banned=np.full(batch, 7),
    )


REFRESH = step_inputs(LENGTH, write_slots=np.arange(1, LENGTH + 1)[None])
CACHED = step_inputs(32, cached=32)


@pytest.fixture(scope="module")
def directory(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("llada")


def same(a: StepOutputs, b: StepOutputs) -> bool:
    """Whether outputs are bit-identical, since a recording runs the same kernels."""
    return np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.odds_against, b.odds_against)


def test_logits_come_only_when_wanted_and_belong_to_the_caller(directory: Path, engine_of: Any) -> None:
    """Fails if logits are copied without being requested, or the next step overwrites the caller's logits."""
    onnx = engine_of("onnxruntime", "llada")
    with opened(directory) as engine:
        assert engine.step(step_inputs()).logits is None
        kept = engine.step(step_inputs(want_logits=True))
        copy = kept.token_ids.copy(), np.array(kept.logits)
        engine.step(step_inputs(want_logits=True, canvas=np.full((1, LENGTH), 7)))
        assert np.array_equal(kept.token_ids, copy[0]) and np.array_equal(kept.logits, copy[1])
        theirs = onnx.step(step_inputs(want_logits=True))
        np.testing.assert_allclose(kept.logits, theirs.logits, rtol=1e-4, atol=1e-4)


def test_decisions_are_those_of_the_same_logits(directory: Path, engine_of: Any) -> None:
    """Fails if the decide plan, or its recording, reads other logits or options than its step's."""
    onnx = engine_of("onnxruntime", "llada")
    with opened(directory) as engine:
        for token in (5, 6, 7, 8):
            canvas, asked = np.full((2, LENGTH), token), sampling(2)
            asked = replace(asked, uniform=asked.uniform[:, ::-1].copy() if token % 2 else asked.uniform)
            inputs = step_inputs(batch=2, canvas=canvas, sampling=asked)
            ours, theirs = engine.step(inputs), onnx.step(inputs)
            for field in fields(Decisions):
                mine, other = getattr(ours.decisions, field.name), getattr(theirs.decisions, field.name)
                np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4)
            assert engine.step(replace(inputs, sampling=None)).decisions is None
        assert engine.hardware.counts["begin_capture"] == 2


def test_without_a_plan_that_decides_a_drawn_token_is_refused(directory: Path) -> None:
    """Fails if drawing without a decide plan returns a greedy token, or greedy decoding needs that plan."""
    with opened(directory, decides=False) as engine:
        with pytest.raises(EngineError, match="no program that draws and filters tokens; export the bundle again"):
            engine.step(step_inputs(sampling=sampling()))
        assert engine.simulation.counts["executions"] == 0
        engine.step(step_inputs())


def test_a_shape_is_captured_the_second_time_and_replayed_from_then_on(directory: Path) -> None:
    """Fails if a shape is captured twice, or its replay differs from the step."""
    with opened(directory) as engine:
        counts = engine.hardware.counts
        captured = []
        answers = []
        for _ in range(5):
            engine.step(REFRESH)
            answers.append(engine.step(CACHED))
            captured.append((counts["begin_capture"], counts["launch"]))
        assert captured == [(0, 0), (2, 0), (2, 2), (2, 4), (2, 6)]
        assert all(same(answer, answers[0]) for answer in answers)
        assert engine.simulation.counts["contexts"] == 5  # one for each profile and each recording
        assert engine.graph_failure is None


def test_a_replay_reads_the_new_inputs(directory: Path) -> None:
    """Fails if a recording replays the inputs with which it was captured."""
    with opened(directory) as engine:
        for token in (5, 6, 7, 8):
            recorded = engine.step(step_inputs(canvas=np.full((1, LENGTH), token)))
        with opened(directory, cuda_graphs=False) as eager:
            fresh = eager.step(step_inputs(canvas=np.full((1, LENGTH), 8)))
            assert eager.hardware.counts["begin_capture"] == 0
        assert engine.hardware.counts["launch"] == 2
        assert same(recorded, fresh)


def test_one_recording_serves_every_slot(directory: Path) -> None:
    """Fails if a recording uses the slots with which it was captured, or another sequence's."""
    with opened(directory) as engine:
        canvases = [np.full((1, LENGTH), token) for token in (5, 90)]
        held = [np.arange(1, 65)[None], np.arange(200, 264)[None]]
        first, later = [], []
        for round_ in range(4):
            for slots, canvas in zip(held, canvases):
                engine.step(replace(REFRESH, canvas=canvas, write_slots=slots))
            answers = [engine.step(replace(CACHED, canvas=c, cache_indices=s[:, :32])) for c, s in zip(canvases, held)]
            (later if round_ else first).append(answers)
        assert not same(*first[0])
        assert all(same(a, b) for answers in later for a, b in zip(answers, first[0]))
        assert engine.hardware.counts["begin_capture"] == 2


@pytest.mark.parametrize("method", ["begin_capture", "end_capture", "contexts"])
def test_a_failed_capture_falls_back_and_says_why(directory: Path, method: str) -> None:
    """Fails if a step fails because it cannot be captured, the reason is lost, or the capture is tried again."""
    with opened(directory) as engine:
        first, counts = engine.step(step_inputs()), engine.hardware.counts
        if method == "contexts":  # there is no memory for another one
            counts = engine.simulation.counts
            engine.simulation.most_contexts = counts["contexts"]
        else:
            engine.hardware.failing[method] = 0
        before = counts[method]
        assert all(same(engine.step(step_inputs()), first) for _ in range(3))
        assert str(engine.graph_failure).endswith(
            "gives no execution context: simulated: no memory" if method == "contexts" else "cudaErrorSimulated"
        )
        assert counts[method] == before + 1 and engine.hardware.recording is None


@pytest.mark.parametrize("method", ["upload", "download", "copy_2d", "synchronise"])
def test_a_failed_step_leaves_the_engine_usable_and_others_slots_as_they_were(directory: Path, method: str) -> None:
    """Fails if a step that fails at any call changes other sequences' rows, or its copies run in the next step."""
    apart = np.concatenate([np.arange(100, 130), np.arange(140, 174)])[None]  # two copies
    written = replace(REFRESH, canvas=np.full((1, LENGTH), 9), write_slots=apart, want_logits=True)
    looks = replace(CACHED, cache_indices=np.arange(100, 130)[None])
    with opened(directory, cuda_graphs=False) as engine:
        engine.step(REFRESH)
        held = engine.step(CACHED)
        engine.step(written)
        new = engine.step(looks)
        for calls in range(9):
            engine.hardware.failing[method] = calls
            try:
                engine.step(replace(written, canvas=written.canvas + 1))
                break
            except EngineError as error:
                assert f"{method}: cudaErrorSimulated" in str(error)
            engine.hardware.failing.clear()
            assert not engine.hardware.pending
            assert same(engine.step(CACHED), held)
            engine.step(written)
            assert same(engine.step(looks), new)
        engine.hardware.failing.clear()
        assert calls == {"upload": 1, "download": 2, "copy_2d": 2, "synchronise": 1}[method]
        assert same(engine.step(CACHED), held) and not same(engine.step(looks), new)


REFUSED: dict[str, tuple[StepInputs, str]] = {
    "position": (step_inputs(gather_indices=np.array([[0, LENGTH]])), "gather_indices holds 64, outside -1 to 63"),
    "pad": (step_inputs(gather_indices=np.array([[-2, 1]])), "gather_indices holds -2"),
    "slot": (step_inputs(cache_indices=np.array([[2049]])), "cache_indices holds 2049, outside -1 to 2048"),
    "written slot": (replace(REFRESH, write_slots=REFRESH.write_slots + 2048), "write_slots holds 2049"),  # type: ignore[operator]
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
    "batch": (step_inputs(batch=5), "a step of 5 rows is outside this engine's 1 to 4; .*--max-batch"),
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
    """Fails if an index outside the pool, or a shape without a profile, reaches the device."""
    inputs, words = REFUSED[case]
    with opened(directory) as engine:
        with pytest.raises(EngineError, match=words):
            engine.step(inputs)
        assert engine.simulation.counts["executions"] == 0


def test_close_frees_everything_and_is_safe_twice(directory: Path) -> None:
    """Fails if `close` leaks memory, fails the second time, or a step runs after it."""
    with opened(directory) as engine:
        for _ in range(3):
            engine.step(replace(REFRESH, sampling=sampling()))
        engine.close()
        engine.close()
        assert engine.hardware.closed and engine.hardware.leaks() == []
        with pytest.raises(EngineError, match="tensorrt is closed"):
            engine.step(REFRESH)


def test_close_waits_for_a_step_of_another_thread(directory: Path) -> None:
    """Fails if memory is freed during a step, or a step after `close` does not raise."""
    with opened(directory) as engine, ThreadPoolExecutor(1) as thread:
        expected, begun = engine.step(REFRESH), Event()

        def steps() -> str:
            try:
                while same(engine.step(REFRESH), expected):
                    begun.set()
            except EngineError as error:
                return str(error)
            return "another answer"

        said = thread.submit(steps)
        assert begun.wait(60)
        engine.close()
        assert said.result() == "tensorrt is closed" and engine.hardware.leaks() == []
