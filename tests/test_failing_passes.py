"""Errors and interrupts in a pass: which requests they end, and that slots are freed."""

import asyncio
import gc
from typing import Any

import numpy as np
import pytest
from decoding import run
from passes import Caller, Passes, members, options_for, passing, request, sequences

from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.suffix import Full
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, InvalidRequest


@pytest.fixture
def engine(make_bundle: Any) -> Any:
    """A recording engine in torch; batches of 4."""
    return passing(make_bundle("llada"))


class Odd(EngineError):
    """An error that cannot be constructed again from its arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}{two}")


@pytest.mark.parametrize("error", [EngineError("boom"), Odd("bo", "om"), ValueError("boom"), MemoryError("boom")])
def test_a_pass_that_fails_ends_those_that_are_in_it(engine: Passes, error: Exception) -> None:
    """Fails if a failed pass ends other sequences than its own, hides the cause, or keeps their slots."""
    requests = [request(1, 6), request(2, 6), request(3, 9)]
    alone = [row.tokens for row in run(engine, requests, options_for())]
    asked = sequences(engine, requests)
    scheduler = Scheduler(engine)
    scheduler.add(*asked)
    for _ in range(8):
        members(scheduler)

    def fail(inputs: StepInputs) -> None:
        if len(inputs.canvas) == 2:
            raise error

    engine.before = fail
    errors: dict[int, Any] = {}
    while scheduler.busy:
        outcomes = scheduler.step()
        if failed := {o.sequence.index: o.error for o in outcomes if o.error is not None}:
            assert len(failed) == len(outcomes) == 2
            errors |= failed
    first, second = errors.values()
    assert first is not second
    assert all(isinstance(each, EngineError) and "boom" in str(each) for each in errors.values())
    assert all(each.__cause__ is error for each in errors.values())
    [left] = {0, 1, 2} - errors.keys()
    assert asked[left].canvas.tolist() == alone[left] and engine.slots.free == engine.slots.most
    engine.before = None
    assert len(run(engine, requests, options_for())) == 3


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"decoder": "margin"}])
def test_nan_in_one_row_fails_one_request(engine: Passes, changes: dict[str, Any]) -> None:
    """Fails if NaN in one sequence ends another one, becomes text, or keeps its slots."""
    asked = [request(1, 6), request(2, 6)]
    alone = [row.tokens for row in run(engine, asked, options_for(**changes))]

    def spoil(inputs: StepInputs, outputs: StepOutputs) -> None:
        if len(inputs.canvas) == 2 and len(engine.passes) - start > 6:
            row = int(inputs.canvas[0, 0] != asked[0].prompt_ids[0])
            for array in vars(outputs.decisions or outputs).values():
                if array is not None and array.dtype.kind == "f":
                    array[row, 0] = np.nan

    engine.after, start = spoil, len(engine.passes)
    scheduler = Scheduler(engine)
    broken, good = sequences(engine, asked, **changes)
    scheduler.add(broken, good)
    errors = []
    while scheduler.busy:
        errors += [(o.sequence, str(o.error)) for o in scheduler.step() if o.error is not None]
    [(sequence, said)] = errors
    assert sequence is broken and "NaN or infinite" in said
    assert good.finished and good.canvas.tolist() == alone[1] and engine.slots.free == engine.slots.most


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
def test_a_schedule_that_fails_ends_its_own_request(engine: Passes, error: type[BaseException]) -> None:
    """Fails if an error in one caller's schedule, in a later block, ends other requests."""

    class Failing(Full):
        def keep(self, block: int, *more: Any) -> Any:
            if block == 1:
                raise error("boom")
            return super().keep(block, *more)

    [alone] = run(engine, [request(1)], options_for())
    good, bad = sequences(engine, [request(1), Request((5, 6, 7), schedule=Failing())])
    scheduler = Scheduler(engine)
    scheduler.add(good, bad)
    ended = [outcome for _ in iter(lambda: scheduler.busy, False) for outcome in scheduler.step() if outcome.error]
    assert [(o.sequence, type(o.error)) for o in ended] == [(bad, InvalidRequest)] and "boom" in str(ended[0].error)
    assert good.canvas.tolist() == alone.tokens and engine.slots.free == engine.slots.most


def test_an_interrupt_leaves_the_slots(engine: Passes) -> None:
    """Fails if slots stay used after Ctrl-C in a pass or in a caller's schedule."""

    class Interrupted(Full):
        def keep(self, block: int, *more: Any) -> Any:
            if block == 1:
                raise KeyboardInterrupt
            return super().keep(block, *more)

    with pytest.raises(KeyboardInterrupt):
        run(engine, [request(1), Request((5, 6, 7), schedule=Interrupted())], options_for(threshold=0.1))
    assert engine.slots.free == engine.slots.most

    def interrupt(inputs: StepInputs) -> None:
        raise KeyboardInterrupt

    engine.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(engine, [request(1), request(2)], options_for())
    assert engine.slots.free == engine.slots.most


def test_the_collector_may_run_at_any_time(make_bundle: Any) -> None:
    """Fails if garbage collection of a dropped decode, in a thread that holds the lock, waits for that lock."""
    engine = passing(make_bundle("llada"))
    asked = sequences(engine, [request(seed) for seed in range(4)])
    scheduler = Scheduler(engine, max_running=2)
    scheduler.add(*asked)
    members(scheduler)

    class Dropped:
        def __init__(self, sequence: Sequence) -> None:
            self.sequence, self.itself = sequence, self

        def __del__(self) -> None:
            scheduler.cancel(self.sequence)

    dropped = [Dropped(asked[1]), Dropped(asked[3])]

    def collect(_: object) -> int:
        if dropped:
            dropped.clear()
            gc.collect()
        return 2**31 - 1

    type(engine).most_rows = property(collect)
    thread = Caller(lambda: [scheduler.step() for _ in iter(lambda: scheduler.busy, False)])
    thread.result()
    assert [s.finished for s in asked] == [True, False, True, False]
    assert engine.slots.free == engine.slots.most
