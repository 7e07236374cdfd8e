"""Real engines that record their passes, and can be made to wait or to fail in a pass.

    engine = passing(make_bundle("llada"))
    engine.sizes, engine.passes

`pass_rows` is how much padding a shared pass may have: none by default, as on a CPU.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import MASK, OPENERS

from dpad.models.torch_engine import TorchEngine
from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.suffix import Full
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.model import DiffusionModel

SECONDS = 30.0  # after which a wait counts as a hang
THREAD = "dpad-passes"


class Passes(Engine):
    """Records the inputs of every pass; waits for `gate`, and calls `before` and `after`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.passes: list[StepInputs] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.before: Callable[[StepInputs], object] | None = None
        self.after: Callable[[StepInputs, StepOutputs], object] | None = None

    @property
    def sizes(self) -> list[int]:
        """The number of sequences of each pass."""
        return [len(inputs.canvas) for inputs in self.passes]

    def hold(self) -> None:
        """Make the next pass wait until `gate.set()`."""
        self.entered.clear()
        self.gate.clear()

    def _step(self, inputs: StepInputs) -> StepOutputs:
        self.passes.append(replace(inputs, canvas=inputs.canvas.copy()))
        self.entered.set()
        assert self.gate.wait(SECONDS)
        if self.before is not None:
            self.before(inputs)
        outputs = super()._step(inputs)  # type: ignore[safe-super]
        if self.after is not None:
            self.after(inputs, outputs)
        return outputs


class PassesTorch(Passes, TorchEngine):
    """The recording engine in eager torch."""


class PassesOnnx(Passes, OnnxEngine):
    """The recording engine in ONNX Runtime."""


def passing(directory: Path, name: str = "torch", *, pass_rows: int = 0, slots: int | None = None) -> Any:
    """A recording engine of a checkpoint from `make_bundle`."""
    kind = {"torch": PassesTorch, "onnxruntime": PassesOnnx}[name]

    class Own(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more, **({} if slots is None else {"slots": slots}))

        def padded(self, axis: str, size: int) -> int:
            return -(-size // 8) * 8 if pass_rows else size

    engine = OPENERS[name](directory, Own)
    engine.pass_rows = pass_rows
    return engine


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Random tokens, none of them the mask or EOS."""
    return tuple(int(token) for token in np.random.default_rng(seed).integers(2, MASK, length))


def request(seed: int = 0, length: int = 6, **more: Any) -> Request:
    """A request of random tokens."""
    return Request(prompt(seed, length), **more)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until another thread has made `condition` true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(1e-3)


def waiting(model: DiffusionModel, count: int) -> None:
    """Wait until `count` sequences are in the queue, which no public interface shows before they run."""
    until(lambda: len(model._scheduler._waiting) == count)


def settle(engine: Engine) -> None:
    """Wait until all worker threads have ended and every slot is free."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(SECONDS)
            assert not thread.is_alive(), "its thread goes on"
    assert engine.slots.free == engine.slots.most


def options_for(**changes: Any) -> GenerationOptions:
    """Options with one token per pass and 32 passes."""
    values: dict[str, Any] = {
        "gen_length": 32,
        "block_length": 16,
        "decoder": "fixed",
        "schedule": Full(),
        "cache": "prefix",
        "early_termination": False,
    }
    return GenerationOptions(**(values | changes))


def sequences(engine: Passes, requests: list[Request], **changes: Any) -> list[Sequence]:
    """One sequence for each request."""
    options = options_for(**changes)
    return [Sequence(each, options, engine.contract, index) for index, each in enumerate(requests)]


def members(scheduler: Scheduler) -> list[int]:
    """Run one pass, and return the indices of its sequences."""
    outcomes = scheduler.step()
    assert not any(outcome.error for outcome in outcomes), outcomes
    return [outcome.sequence.index for outcome in outcomes]


OPTIONS: Options = {
    "gen_length": 32,
    "block_length": 16,
    "decoder": "fixed",
    "schedule": Full(),
    "early_termination": False,
}


def canvas(model: DiffusionModel, given: Request) -> Any:
    """The decoded canvas of a request."""
    return model.generate(given, **OPTIONS).canvas.tolist()


class Caller(threading.Thread):
    """Calls a function in a thread; `result()` returns or raises its outcome."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call, self._given, self._raised = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self._given = self._call()
        except BaseException as error:
            self._raised = error

    def error(self) -> BaseException | None:
        """The error that the function raised, if any."""
        self.join(SECONDS)
        assert not self.is_alive(), "it hangs"
        return self._raised

    def result(self) -> Any:
        """Wait for the function, and return its result or raise its error."""
        if (error := self.error()) is not None:
            raise error
        return self._given
