"""No caller waits forever when a model, a thread or a process ends, or when foreign code hangs."""

import multiprocessing
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passes import OPTIONS, SECONDS, THREAD, Caller, Passes, canvas, passing, request, settle, until

from dpad.runtime.decoding.suffix import Full
from dpad.runtime.engines.step import StepInputs
from dpad.runtime.errors import EngineError, InvalidRequest, ModelClosed, QueueFull
from dpad.runtime.model import DiffusionModel


@pytest.fixture(params=["torch", "onnxruntime"])
def engine(make_bundle: Any, request: pytest.FixtureRequest) -> Any:
    """A recording engine of each kind; batches of 4."""
    return passing(make_bundle("llada"), request.param)


def test_closing_ends_every_call(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a call does not end at once with `ModelClosed` when the model is closed."""
    stream = model.stream(request(50), **OPTIONS)
    next(stream)
    engine.hold()
    callers = [Caller(lambda seed=seed: canvas(model, request(seed, 4 + seed % 3))) for seed in range(8)]
    assert engine.entered.wait(SECONDS)
    until(lambda: len(model._worker._listeners) == 9)
    closing = Caller(model.close)
    for caller in callers:
        assert isinstance(caller.error(), ModelClosed)
    with pytest.raises(ModelClosed, match="is closed; load it again"):
        list(stream)
    engine.gate.set()
    closing.result()
    settle(engine)
    for call in (lambda: canvas(model, request(1)), lambda: model.stream(request(1))):
        with pytest.raises(ModelClosed):
            call()


def test_closing_while_calls_come(make_bundle: Any) -> None:
    """Fails if a call made while the model is closing is neither served nor refused."""
    for attempt in range(20):
        engine = passing(make_bundle("llada"))
        model = DiffusionModel(engine, None)
        start = threading.Barrier(5)

        def call(seed: int, model: DiffusionModel = model, start: threading.Barrier = start) -> Any:
            start.wait(SECONDS)
            return [model.generate(request(seed), gen_length=8, block_length=8) for _ in range(20)]

        callers = [Caller(lambda seed=seed: call(seed)) for seed in range(4)]
        start.wait(SECONDS)
        if attempt % 2:
            engine.entered.wait(SECONDS)
        model.close()
        assert all(isinstance(caller.error(), ModelClosed | None) for caller in callers)
        settle(engine)


def test_an_interrupt_while_the_thread_starts(model: DiffusionModel, engine: Passes) -> None:
    """Fails if the model starts a second worker thread after Ctrl-C interrupted the start of the first."""
    alone = canvas(model, request(2))
    settle(engine)

    begun: list[str] = []
    released = threading.Event()

    def interrupt(frame: object, event: str, called: Any) -> None:
        if event == "c_return" and called.__name__ == "start_new_thread":
            sys.setprofile(None)
            raise KeyboardInterrupt

    def late(frame: Any, event: str, called: object) -> None:
        sys.setprofile(None)
        begun.append(event)
        if len(begun) == 1:
            assert released.wait(SECONDS)

    engine.hold()
    threading.setprofile(late)
    sys.setprofile(interrupt)
    with pytest.raises(KeyboardInterrupt):
        canvas(model, request(1))
    until(lambda: begun)
    threading.setprofile(None)
    caller = Caller(lambda: canvas(model, request(2)))
    until(lambda: len(model._worker._listeners) == 1)
    released.set()
    assert engine.entered.wait(SECONDS)
    until(lambda: [thread.name for thread in threading.enumerate()].count(THREAD) == 1)
    engine.gate.set()
    assert caller.result() == alone


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_an_engine_that_ends_its_thread_ends_no_caller(
    model: DiffusionModel, engine: Passes, error: BaseException
) -> None:
    """Fails if a `BaseException` of the engine ends the worker thread, so that callers wait forever."""
    alone = canvas(model, request(1))

    def fail(inputs: StepInputs) -> None:
        raise error

    engine.hold()
    engine.before = fail
    callers = [Caller(lambda seed=seed: canvas(model, request(seed, 3 * seed))) for seed in range(1, 7)]
    assert engine.entered.wait(SECONDS)
    until(lambda: len(model._worker._listeners) == 6)
    engine.gate.set()
    for caller in callers:
        raised = caller.error()
        assert isinstance(raised, EngineError) and type(error).__name__ in str(raised)
    engine.before = None
    assert canvas(model, request(1)) == alone


class Own(Full):
    """A caller's schedule that calls a function when block 1 begins."""

    def __init__(self, act: Any) -> None:
        object.__setattr__(self, "act", act)

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> Any:
        if block == 1:
            self.act()
        return super().keep(block, length, gen_length, rng)


def test_a_schedule_that_fails_ends_its_own_request(model: DiffusionModel) -> None:
    """Fails if an error in one caller's schedule ends another caller's request."""
    alone = canvas(model, request(2))
    bad = Caller(lambda: canvas(model, request(1, schedule=Own(lambda: 1 / 0))))
    good = Caller(lambda: canvas(model, request(2)))
    error = bad.error()
    assert isinstance(error, InvalidRequest) and "failed in its method keep: ZeroDivisionError" in str(error)
    assert good.result() == alone


def test_a_schedule_cannot_wait_for_itself(model: DiffusionModel) -> None:
    """Fails if a schedule that calls `generate` in the worker thread hangs the model."""
    own = Own(lambda: model.generate(request(2), **OPTIONS))
    caller = Caller(lambda: canvas(model, request(1, schedule=own)))
    with pytest.raises(InvalidRequest, match="a schedule cannot generate with the model that calls it"):
        caller.result()


def test_a_schedule_that_hangs_holds_up_passes_alone(make_bundle: Any) -> None:
    """Fails if, while a caller's schedule hangs, other requests cannot be refused, cancelled or ended by `close`."""
    reached, released = threading.Event(), threading.Event()
    engine = passing(make_bundle("llada"))
    model = DiffusionModel(engine, None, max_running=2, max_waiting=0)
    other = model.stream(request(3, 40), **OPTIONS)
    next(other)
    hung = Own(lambda: (reached.set(), released.wait(SECONDS)))
    caller = Caller(lambda: canvas(model, request(1, schedule=hung)))
    assert reached.wait(SECONDS)
    with pytest.raises(QueueFull):
        canvas(model, request(2))
    other.close()
    closing = Caller(model.close)
    assert isinstance(caller.error(), ModelClosed)
    released.set()
    closing.result()
    settle(engine)


PROGRAM = """
    import sys
    from pathlib import Path
    from checkpoints import OPENERS
    from dpad.runtime.model import DiffusionModel

    model = DiffusionModel(OPENERS[sys.argv[1]](Path(sys.argv[2])), None)
    events = model.stream_batch([[5, 6, 7]] * 8, gen_length=64, decoder="fixed", early_termination=False)
    next(events)
    print("leaves")
"""


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_a_process_may_end_in_the_middle_of_a_pass(make_bundle: Any, name: str) -> None:
    """Fails if a process that ends during a pass is aborted or hangs."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), name, str(make_bundle("llada"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "leaves\n", "")


def test_a_forked_process_is_refused(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a forked process hangs in `generate` or `close`, on locks of threads that it does not have."""

    def forked() -> None:
        with model, pytest.raises(InvalidRequest, match="load the bundle in each process"):
            canvas(model, request(2))

    engine.hold()
    caller = Caller(lambda: canvas(model, request(1)))
    assert engine.entered.wait(SECONDS)
    child = multiprocessing.get_context("fork").Process(target=forked)
    child.start()
    child.join(SECONDS)
    child.kill()
    assert child.exitcode == 0
    engine.gate.set()
    assert len(caller.result()) == 38
