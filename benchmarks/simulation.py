"""Stand-ins for a model in `scheduling.py`: an engine that answers at once, and recorded decodes.

    traces = record(engine, [(request, options), ...])
    simulate(NullEngine(8, pass_rows=300), traces, arrivals, running=16).passes
    perfect([len(trace) for trace in traces], arrivals, limit=8)

A decode needs the same shapes in the same order whatever other sequences share its passes, so one recording is valid
for every simulation. Arrivals are counted in passes.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.part import Answer, Part, Scheduled, View
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import Scheduler, run
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.slots import Slots
from dpad.runtime.engines.step import Decisions, StepInputs, StepOutputs

LENGTH = 1024
LLADA: dict[str, Any] = {  # LLaDA-8B
    "family": "llada",
    "layers": 32,
    "heads": 32,
    "kv_heads": 32,
    "head_size": 128,
    "vocab_size": 126464,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "logit_shift": 0,
    "max_length": LENGTH,
    "block_length": 32,
    "window": 256,
    "tempers_confidence": False,
}
ROW_SECONDS = 20e-6  # per query row of LLaDA-8B in bfloat16 on an H100, where products are the bound
_SURE, _UNSURE = 0.01, 5.0  # odds against a confident token and against another one
_NUMBERS = np.arange(LENGTH)
_CANVAS = np.zeros(LENGTH, dtype=np.int64)


class NullEngine(Engine):
    """Answers at once with random decisions; a token is confident with probability `sure`, and EOS with `end`."""

    name, dtype = "null", "bfloat16"

    def __init__(self, max_batch: int, pass_rows: int, sure: float = 0.1, end: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.contract = StepContract(**LLADA, max_batch=max_batch)
        self.pass_rows, self.slots = pass_rows, Slots(4 * max_batch * LENGTH + 1)
        rng = np.random.default_rng(seed)
        size = 1 << 16
        self._tokens = rng.integers(self.contract.eos_token_id, size=size)
        self._tokens[rng.random(size) < end] = self.contract.eos_token_id
        self._odds = np.where(rng.random(size) < sure, _SURE, _UNSURE).astype(np.float32)
        self._at = 0

    def _step(self, inputs: StepInputs) -> StepOutputs:
        shape = inputs.decode_rows.shape
        count = shape[0] * shape[1]
        self._at = (self._at + 977) % (len(self._odds) - count)
        here = slice(self._at, self._at + count)
        tokens, odds = self._tokens[here].reshape(shape), self._odds[here].reshape(shape)
        decided = Decisions(tokens, odds, -odds, odds) if inputs.sampling is not None else None
        return StepOutputs(tokens, odds, decided)


class Pass(NamedTuple):
    """The needs of a decode in one pass: whether it starts a block, query rows, and attended slots."""

    refresh: bool
    queries: int
    cached: int


Trace = list[Pass]


class _Recorder(Sequence):
    """A sequence that records its passes in `trace`."""

    def part(self) -> Part:
        part = super().part()
        self.__dict__.setdefault("trace", []).append(
            Pass(part.view.refresh, len(part.view.queries), len(part.view.cached))
        )
        return part


def record(engine: Engine, decodes: Several[tuple[Request, GenerationOptions]]) -> list[Trace]:
    """Run each decode alone, and return its passes."""
    traces = []
    for request, options in decodes:
        sequence = _Recorder(request, options, engine.contract)
        for _ in run(engine, [sequence]):
            pass
        traces.append(sequence.__dict__["trace"])
    return traces


class Wait(NamedTuple):
    """The wait of a ready decode: the passes that ran without it, and their seconds by `ROW_SECONDS`."""

    passes: int = 0
    seconds: float = 0.0


class Recorded(Scheduled):
    """A recorded decode in a simulation.

    Attributes:
        arrival: the pass before which it arrives.
        queued: the wait before its first pass.
        longest: the longest wait between two of its passes.
    """

    need = 0

    def __init__(self, trace: Trace, arrival: float) -> None:
        self.trace, self.arrival, self.done = trace, arrival, 0
        self.ready = self.queued = self.longest = Wait()

    def join(self, slots: NDArray[np.int64]) -> None:
        """Do nothing: a recorded decode needs no slots."""

    def part(self) -> Part:
        """The part for its next recorded pass."""
        return Part(_view(self.trace[self.done]), _CANVAS, _NUMBERS[:1])

    def take(self, answer: Answer) -> object:
        """Continue with the next recorded pass."""
        self.done += 1
        self.finished = self.done == len(self.trace)
        return answer

    def ran(self, began: Wait, ended: Wait) -> None:
        """Note that it took part in a pass that began and ended at these counts of passes and seconds."""
        wait = Wait(began.passes - self.ready.passes, began.seconds - self.ready.seconds)
        self.ready = ended
        if self.done == 1:
            self.queued = wait
        else:
            self.longest = max(self.longest, wait)


_VIEWS: dict[Pass, View] = {}


def _view(asked: Pass) -> View:
    if asked not in _VIEWS:
        _VIEWS[asked] = View(_NUMBERS[: asked.queries], _NUMBERS[: asked.cached], None, asked.refresh)
    return _VIEWS[asked]


@dataclass
class Simulated:
    """The number of passes, their seconds by `ROW_SECONDS`, and the decodes in the order of arrival."""

    passes: int
    seconds: float
    decodes: list[Recorded]


def simulate(engine: NullEngine, traces: Several[Trace], arrivals: Several[float], running: int | None) -> Simulated:
    """Run `traces`, each from its arrival on; passes without any sequence are not counted."""
    scheduler = Scheduler(engine, running)
    decodes = sorted(map(Recorded, traces, arrivals), key=lambda decode: decode.arrival)
    coming, now, idle = decodes[::-1], Wait(), 0
    while coming or scheduler.busy:
        if not scheduler.busy:
            idle = max(idle, int(np.ceil(coming[-1].arrival)) - now.passes)
        while coming and coming[-1].arrival <= now.passes + idle:
            coming[-1].ready = now
            scheduler.add(coming.pop())
        members = [outcome.sequence for outcome in scheduler.step()]
        rows = len(members) * max(decode.trace[decode.done - 1].queries for decode in members)
        ended = Wait(now.passes + 1, now.seconds + ROW_SECONDS * (max(engine.pass_rows, 1) + rows))
        for decode in members:
            decode.ran(now, ended)
        now = ended
    return Simulated(now.passes, now.seconds, decodes)


def perfect(lengths: Several[int], arrivals: Several[float], limit: int) -> int:
    """The passes of a perfect packing, which knows all lengths and lets any shapes share a pass.

    Each pass takes those `limit` of the decodes that have arrived which have the most passes left. If there is none, it
    waits for the next arrival.
    """
    left, arrived = np.array(lengths), np.array(arrivals)
    clock = passes = 0
    while left.any():
        here = np.flatnonzero((arrived <= clock) & (left > 0))
        if not len(here):
            clock = int(np.ceil(arrived[left > 0].min()))
            continue
        left[here[np.argsort(-left[here], kind="stable")[:limit]]] -= 1
        clock, passes = clock + 1, passes + 1
    return passes
