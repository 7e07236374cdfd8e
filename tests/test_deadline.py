"""Deadlines: a request ends after the running pass with the best text so far, and others are not affected."""

import time
from typing import Any

import numpy as np
import pytest
from checkpoints import EOS, MASK
from passes import OPTIONS, Caller, Passes, canvas, passing, request, settle, waiting

from dpad.runtime.decoding import scheduler
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel

HOUR = 3600.0


@pytest.fixture(params=["llada", "dream"])
def engine(make_bundle: Any, request: pytest.FixtureRequest) -> Any:
    """A recording engine in torch; batches of 4."""
    return passing(make_bundle(request.param))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that moves the scheduler's clock past every deadline."""
    clock = [0.0]
    monkeypatch.setattr(scheduler, "perf_counter", lambda: time.perf_counter() + clock[0])
    return lambda: clock.__setitem__(0, 2 * HOUR)


@pytest.mark.parametrize("passes", [1, 5, 16, 18])
def test_the_text_is_what_there_is_then(model: DiffusionModel, engine: Passes, late: Any, passes: int) -> None:
    """Fails if a committed token is lost, the last pass's predictions do not fill the block, or another pass runs."""
    whole = list(model.stream(request(), **OPTIONS))
    proposed: dict[int, int] = {}

    def after(inputs: StepInputs, outputs: StepOutputs) -> None:
        positions = np.take_along_axis(inputs.gather_indices, inputs.decode_rows, 1) + engine.contract.logit_shift
        proposed.clear()
        proposed.update(zip(positions[0].tolist(), outputs.token_ids[0].tolist()))
        if len(engine.passes) == passes:
            late()

    engine.passes.clear()
    engine.after = after
    events = list(model.stream(request(), **OPTIONS, deadline=HOUR))
    assert len(engine.passes) == passes and len(events) == passes + 1
    told = events[-1].generation
    assert told is not None and (told.nfe, told.finish_reason) == (passes, "deadline")
    whole_canvas = whole[-1].generation and whole[-1].generation.canvas
    wanted = np.full_like(whole_canvas, MASK)
    wanted[:6] = whole_canvas[:6]
    for event in whole[:passes]:
        wanted[event.positions] = event.tokens
    if whole[passes].block == whole[passes - 1].block:  # otherwise the pass has finished its block
        for position, token in proposed.items():
            wanted[position] = token if wanted[position] == MASK else wanted[position]
    assert told.canvas.tolist() == wanted.tolist()
    folded = np.full_like(wanted, MASK)
    for event in events:
        folded[event.positions] = event.tokens
    assert folded[6:].tolist() == told.canvas[6:].tolist(), "the events do not add up to the canvas"
    written = [int(token) for token in told.canvas[6:] if token != MASK]
    assert told.token_ids == (written[: written.index(EOS)] if EOS in written else written)


def test_one_that_waits_ends_too(engine: Passes, late: Any) -> None:
    """Fails if a waiting request does not end at its deadline, or another request's text changes."""
    with DiffusionModel(engine, None, max_running=1) as model:
        alone = model.generate(request(1), **OPTIONS).canvas.tolist()
        engine.hold()
        running = Caller(lambda: model.generate(request(1), **OPTIONS))
        assert engine.entered.wait(30)
        queued = Caller(lambda: model.generate(request(2), **OPTIONS, deadline=HOUR))
        waiting(model, 1)
        late()
        engine.gate.set()
        told = queued.result()
        assert (told.nfe, told.token_ids, told.finish_reason) == (0, [], "deadline")
        assert told.timings.wait > 0
        assert running.result().canvas.tolist() == alone
    settle(engine)


def test_a_deadline_that_is_not_reached_changes_nothing(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a deadline that is not reached changes the text or its finish reason."""
    told = model.generate(request(), **OPTIONS, deadline=HOUR)
    assert told.canvas.tolist() == model.generate(request(), **OPTIONS).canvas.tolist()
    assert told.finish_reason == ("stop" if EOS in told.canvas[6:] else "length")


def test_no_pass_begins_that_would_end_too_late(
    model: DiffusionModel, engine: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if an answer waits for a pass that cannot end in time, or a pass is left out that could."""
    clock = [0.0]
    monkeypatch.setattr(scheduler, "perf_counter", lambda: time.perf_counter() + clock[0])

    def after(inputs: StepInputs, outputs: StepOutputs) -> None:
        clock[0] += HOUR

    engine.after = after
    told = model.generate(request(), **OPTIONS, deadline=3.5 * HOUR)
    assert (told.nfe, len(engine.passes), told.finish_reason) == (3, 3, "deadline")
    told = model.generate(request(), **OPTIONS, deadline=40 * HOUR)
    assert (told.nfe, told.finish_reason != "deadline") == (32, True)


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), "1", True])
def test_deadlines_that_are_none(model: DiffusionModel, engine: Passes, deadline: Any) -> None:
    """Fails if an invalid deadline is accepted."""
    with pytest.raises(InvalidRequest, match="deadline"):
        model.generate(request(), **OPTIONS, deadline=deadline)


def test_the_status_tells_of_what_runs_and_waits(engine: Passes) -> None:
    """Fails if the status has wrong numbers of running and waiting requests."""
    with DiffusionModel(engine, None, max_running=1) as model:
        assert model.status == (0, 0, 0, 0)
        engine.hold()
        callers = [Caller(lambda seed=seed: canvas(model, request(seed))) for seed in range(3)]
        assert engine.entered.wait(30)
        waiting(model, 2)
        status = model.status
        assert (status.running, status.waiting, status.passes) == (1, 2, 0)
        assert status.slots == engine.slots.most - engine.slots.free > 0
        engine.gate.set()
        for caller in callers:
            caller.result()
        settle(engine)
        assert model.status[:3] == (0, 0, 0) and model.status.passes == len(engine.passes)
