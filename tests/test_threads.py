"""Threads that share a model: shared passes, limits, and freeing of slots when callers leave or fail."""

import gc
import threading
from typing import Any

import pytest
from passes import OPTIONS, SECONDS, THREAD, Caller, Passes, canvas, passing, request, settle, waiting

from dpad.runtime.engines.step import StepInputs
from dpad.runtime.errors import EngineError, InvalidRequest, QueueFull
from dpad.runtime.model import DiffusionModel


@pytest.fixture(params=["torch", "onnxruntime"])
def engine(make_bundle: Any, request: pytest.FixtureRequest) -> Any:
    """A recording engine of each kind; batches of 4."""
    return passing(make_bundle("llada"), request.param)


def test_threads_are_batched_without_doing_anything(model: DiffusionModel, engine: Passes) -> None:
    """Fails if requests of several threads take turns, or get each other's text."""
    asked = [request(seed) for seed in range(4)]
    alone = [canvas(model, each) for each in asked]
    engine.passes.clear()
    engine.hold()
    callers = [Caller(lambda: canvas(model, asked[0]))]
    assert engine.entered.wait(SECONDS)
    callers += [Caller(lambda each=each: canvas(model, each)) for each in asked[1:]]
    waiting(model, 3)
    engine.gate.set()
    assert [caller.result() for caller in callers] == alone
    assert len(engine.passes) < 4 * 32 / 2 and max(engine.sizes) == 4


def test_a_batch_may_be_larger_than_a_pass(model: DiffusionModel, engine: Passes) -> None:
    """Fails if prompts beyond `max_batch` are refused or lost, or returned in another order."""
    asked = [request(seed, 3 + seed) for seed in range(11)]
    alone = [canvas(model, each) for each in asked]
    assert [each.canvas.tolist() for each in model.generate_batch(asked, **OPTIONS)] == alone
    assert max(engine.sizes) <= 4


def test_timings_add_up(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a phase of a request is omitted or counted twice, or time in the loop counts as waiting."""
    engine.hold()
    first = Caller(lambda: model.generate(request(1, 40), **OPTIONS))
    assert engine.entered.wait(SECONDS)
    second = Caller(lambda: model.generate(request(2), **OPTIONS))
    waiting(model, 1)
    engine.gate.set()
    for caller in (first, second):
        timings = caller.result().timings
        phases = (timings.encode, timings.wait, timings.refresh, timings.denoise, timings.loop)
        assert timings.total == pytest.approx(sum(phases)) and min(phases) >= 0
    assert second.result().timings.wait > 0
    assert model.generate(request(3), **OPTIONS).timings.wait == 0, "alone it waits for nobody"


def test_a_full_queue_is_an_error_of_its_own(engine: Passes) -> None:
    """Fails if requests beyond the queue's limit are not refused, or queued ones are lost."""
    with DiffusionModel(engine, None, max_running=1, max_waiting=1) as model:
        alone = canvas(model, request(2))
        engine.hold()
        first = Caller(lambda: canvas(model, request(1)))
        assert engine.entered.wait(SECONDS)
        second = Caller(lambda: canvas(model, request(2)))
        waiting(model, 1)
        for refused in (lambda: canvas(model, request(3)), lambda: next(model.stream(request(3), **OPTIONS))):
            with pytest.raises(QueueFull, match="1 request came, 1 wait already"):
                refused()
        engine.gate.set()
        assert first.result() != second.result() == alone
        assert canvas(model, request(2)) == alone, "there is room again"
        settle(engine)


def test_a_request_waits_for_slots_and_is_served(make_bundle: Any) -> None:
    """Fails if a full pool refuses a request that could wait, or two requests get the same slots."""
    engine = passing(make_bundle("llada"), slots=46)
    with DiffusionModel(engine, None) as model:
        asked = [request(seed, 20) for seed in range(3)]  # 36 slots each
        alone = [canvas(model, each) for each in asked]
        assert [each.canvas.tolist() for each in model.generate_batch(asked, **OPTIONS)] == alone
        assert max(engine.sizes) == 1
        done = len(engine.passes)
        for call in (model.generate, model.stream, lambda *a, **o: model.generate_batch([asked[0], *a], **o)):
            with pytest.raises(InvalidRequest, match="46 slots .* has 45; shorten it"):
                call(request(1, 30), **OPTIONS)
        assert len(engine.passes) == done
        settle(engine)


def close_iterator(model: DiffusionModel) -> None:
    events = model.stream(request(1), **OPTIONS)
    next(events)
    events.close()


def drop_iterator(model: DiffusionModel) -> None:
    next(model.stream(request(1), **OPTIONS))


def drop_in_a_cycle(model: DiffusionModel) -> None:
    held: list[Any] = [model.stream_batch([request(1), request(2, 40)], **OPTIONS)]
    held.append(held)
    next(held[0])
    del held
    gc.collect()


def raise_in_on_step(model: DiffusionModel) -> None:
    with pytest.raises(ZeroDivisionError):
        model.generate_batch([request(1), request(2)], on_step=lambda event: 1 / 0, **OPTIONS)


def never_start(model: DiffusionModel) -> None:
    model.stream(request(1), **OPTIONS)


@pytest.mark.parametrize("leave", [close_iterator, drop_iterator, drop_in_a_cycle, raise_in_on_step, never_start])
def test_who_leaves_is_not_computed_for(model: DiffusionModel, engine: Passes, leave: Any) -> None:
    """Fails if slots of a caller that has left are not freed, or passes are computed for it."""
    released = threading.Event()

    def hold(inputs: StepInputs) -> None:
        if len(engine.passes) == 2:
            assert released.wait(SECONDS)

    engine.before = hold  # the second pass runs until the caller has left
    leave(model)
    released.set()
    settle(engine)
    assert len(engine.passes) <= 2
    engine.before = None
    assert len(canvas(model, request(1))) == 38


def test_a_pass_that_fails_is_told_to_those_in_it(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a failed pass affects other or later requests."""
    asked = [request(1), request(2, 40)]
    alone = [canvas(model, each) for each in asked]

    def fail(inputs: StepInputs) -> None:
        if inputs.canvas[:, 0].tolist() == [asked[0].prompt_ids[0]] and len(engine.passes) > 70:
            raise OSError("the device is gone")

    engine.before = fail
    callers = [Caller(lambda each=each: canvas(model, each)) for each in asked]
    error = callers[0].error()
    assert isinstance(error, EngineError) and "OSError: the device is gone" in str(error)
    assert isinstance(error.__cause__, OSError) and callers[1].result() == alone[1]
    engine.before = None
    assert canvas(model, asked[0]) == alone[0]


def test_the_thread_ends_when_there_is_nothing_to_do(model: DiffusionModel, engine: Passes) -> None:
    """Fails if an idle model keeps a thread, or does not start one again."""
    for _ in range(3):
        canvas(model, request(1))
        settle(engine)
        assert THREAD not in {thread.name for thread in threading.enumerate()}


def test_a_model_cannot_be_made_that_runs_nothing(engine: Passes) -> None:
    """Fails if a limit of 0, with which every request would wait forever, is accepted."""
    for limits in ({"max_running": 0}, {"max_waiting": -1}, {"max_running": True}):
        with pytest.raises(InvalidRequest, match="max_"):
            DiffusionModel(engine, None, **limits)
    with DiffusionModel(engine, None, max_running=1, max_waiting=0) as model:
        assert canvas(model, request(1, 6)) == canvas(model, request(1))
        settle(engine)
