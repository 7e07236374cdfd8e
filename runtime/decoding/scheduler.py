"""`Scheduler`: continuous batching. Sequences join and leave between any two passes.

    scheduler = Scheduler(engine, max_running=16)
    scheduler.add(sequence)
    while scheduler.busy:
        for sequence, outcome in scheduler.step():      # one pass
            ...

Sequences wait in the order in which they came, and join when there is room for them: the slots that they can need at
most are theirs from then on, so that nothing that runs can run out. `Turns` says which of them share a pass.
"""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Several
from contextlib import suppress
from math import inf
from queue import SimpleQueue
from threading import Lock
from time import perf_counter, sleep
from typing import Any, NamedTuple

from dpad.runtime.decoding.assemble import Assembler
from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.limits import RUNNING, WAITING, Status, limits
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.part import Scheduled
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.turns import Seat, Turns
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import EngineError, InvalidRequest, ModelClosed, QueueFull
from dpad.runtime.show import counted, kind, told

IDLE = 1e-3  # seconds until a scheduler that found no free slots looks again


class Outcome(NamedTuple):
    """What became of a sequence in a pass: an event of its own, or the error that ended it; whether it was its last."""

    sequence: Any
    event: Any = None
    error: Exception | None = None
    last: bool = False


class Scheduler:
    """Runs sequences over one engine.

    `add`, `cancel` and `drain` may be called by any thread at any time, `step` by one thread at a time. What sequences
    do, their schedules among them, is done outside the lock.
    """

    def __init__(self, engine: Engine, max_running: int | None = None, max_waiting: int = WAITING) -> None:
        """`max_running` None is four times what a pass takes; raises `InvalidRequest` for what is no limit."""
        read = limits(max_running, max_waiting)
        self.engine = engine
        self.max_running: int = read["max_running"] or RUNNING * engine.contract.max_batch
        self.max_waiting: int = read["max_waiting"]
        self._turns = Turns(engine)
        self._assembler = Assembler(engine)
        self._lock = Lock()
        self._cancelled: SimpleQueue[Scheduled] = SimpleQueue()
        self._waiting: deque[Seat] = deque()
        self._running: list[Seat] = []  # the longest not served first
        self._timed: list[Seat] = []  # of both, those with a deadline
        self.passes = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def status(self) -> Status:
        """Of this moment, for any thread; the engine's slots may be held by another scheduler too."""
        slots = self.engine.slots
        return Status(len(self._running), len(self._waiting), slots.most - slots.free, self.passes)

    def check(self, sequence: Scheduled) -> None:
        """Raise `InvalidRequest` for a sequence that the pool can never hold."""
        if sequence.need > (most := self.engine.slots.most):
            raise InvalidRequest(
                f"a sequence that keeps up to {counted(sequence.need, 'slot')} of keys and values cannot be served: "
                f"the pool of {self.engine.name} has {most}; shorten it, or load the bundle with more slots"
            )

    def add(self, *sequences: Scheduled) -> None:
        """Let sequences wait for their turn, all or none of them.

        Raises `InvalidRequest` as `check` does, and `QueueFull` where too many wait.
        """
        for sequence in sequences:
            self.check(sequence)
        with self._lock:
            self._drop_cancelled()
            places = self.max_waiting + max(0, self.max_running - len(self._running))
            if len(self._waiting) + len(sequences) > places:
                raise QueueFull(
                    f"{counted(len(sequences), 'request')} came, {len(self._waiting)} wait already, and the queue "
                    f"holds {self.max_waiting}; try later, send fewer, or load the bundle with a larger max_waiting"
                )
            seats = [Seat(sequence, self.passes) for sequence in sequences]
            self._waiting.extend(seats)
            self._timed.extend(seat for seat in seats if seat.sequence.deadline < inf)

    def cancel(self, sequence: Scheduled) -> None:
        """Let a sequence go; its slots are free at once, or when the pass that it is in has ended.

        It never waits for the lock: the collector may call it for a stream that was dropped, in any thread, also in
        one that holds the lock.
        """
        self._cancelled.put(sequence)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_cancelled()
            finally:
                self._lock.release()

    def drain(self) -> None:
        """Let all of them go."""
        with self._lock:
            for seat in [*self._waiting, *self._running]:
                self._drop(seat)

    def step(self) -> list[Outcome]:
        """Run one pass; gives what became of each sequence in it, and of those that expired or could not join."""
        held: list[Seat] = []
        try:
            with self._lock:
                self._drop_cancelled()
                held += (late := self._late())
                held += (joining := self._admit())
            outcomes = [self._end(seat, seat.sequence.expire()) for seat in late]
            outcomes += [outcome for seat in joining if (outcome := self._join(seat)) is not None]
            with self._lock:
                self._drop_cancelled()
                members = self._turns.next(self._running)
                held += members
                others = self._running[: -len(members)]
            return outcomes + self._pass(members, others) if members else outcomes
        except BaseException:  # an interrupt too leaves their slots to others
            with self._lock:
                for seat in held:
                    self._leave(seat)
            raise

    def _pass(self, members: list[Seat], others: list[Seat]) -> list[Outcome]:
        """One step of the engine, for which `others` wait; what fails in it fails its members."""
        start, parts = perf_counter(), [seat.part for seat in members]
        try:
            inputs = self._assembler.inputs(parts)
            began = perf_counter()
            outputs = self.engine.step(inputs)
            answers = self._assembler.answers(outputs, parts, perf_counter() - began)
        except Exception as error:
            return [self._end(seat, error=_own(error, self.engine)) for seat in members]
        finally:
            self.passes += 1
            for seat in others:
                seat.sequence.waited += perf_counter() - start
        return [self._take(seat, answer) for seat, answer in zip(members, answers)]

    def _drop_cancelled(self) -> None:
        """Under the lock: let go of those for whom `cancel` was called."""
        while not self._cancelled.empty():
            sequence = self._cancelled.get()
            for seat in [seat for seat in (*self._waiting, *self._running) if seat.sequence is sequence]:
                self._drop(seat)

    def _drop(self, seat: Seat) -> None:
        """Under the lock: let go of a sequence, once `step` does."""
        seat.cancelled = True
        if not seat.held:
            self._leave(seat)

    def _late(self) -> list[Seat]:
        """Under the lock: those whose deadline has come, which leave before others join."""
        now = perf_counter()
        late = [seat for seat in self._timed if seat.sequence.deadline <= now]
        for seat in late:
            if seat.slots is None:
                seat.sequence.waited = now - seat.since
            self._leave(seat)
        return late

    def _leave(self, seat: Seat) -> None:
        """Under the lock: take a sequence out, and its slots back."""
        if seat in self._timed:
            self._timed.remove(seat)
        if seat.slots is None:
            with suppress(ValueError):  # of one that expired
                self._waiting.remove(seat)
        elif seat in self._running:
            self._running.remove(seat)
            self.engine.slots.give(seat.slots)

    def _admit(self) -> list[Seat]:
        """Under the lock: let waiting sequences in, in their order, while there is room."""
        joining = []
        while self._waiting and len(self._running) < self.max_running:
            slots = self.engine.slots.take(self._waiting[0].sequence.need)
            if slots is None:
                break
            seat = self._waiting.popleft()
            seat.slots, seat.held = slots, True
            if self.passes > seat.passes:  # else it waited for nobody
                seat.sequence.waited = perf_counter() - seat.since
            self._running.append(seat)
            joining.append(seat)
        return joining

    def _join(self, seat: Seat) -> Outcome | None:
        """Let a sequence begin; gives how it ended if it could not."""
        assert seat.slots is not None
        try:
            seat.sequence.join(seat.slots)
            self._ready(seat)
        except Exception as error:
            return self._end(seat, error=error)
        return self._end(seat) if self._release(seat) else None

    def _ready(self, seat: Seat) -> None:
        """Ask for the next part."""
        seat.prepare(seat.sequence.part(), self.engine)

    def _take(self, seat: Seat, answer: Any) -> Outcome:
        """Let a sequence take what the pass decided for it."""
        try:
            event = seat.sequence.take(answer)
            if not seat.sequence.finished:
                self._ready(seat)
        except Exception as error:  # of this sequence alone: its numbers, or its schedule
            return self._end(seat, error=error)
        if seat.sequence.finished or self._release(seat):
            return self._end(seat, event)
        return Outcome(seat.sequence, event)

    def _release(self, seat: Seat) -> bool:
        """A sequence is ready for its next pass; gives whether it was cancelled instead."""
        with self._lock:
            seat.held = seat.cancelled
            return seat.cancelled

    def _end(self, seat: Seat, event: Any = None, error: Exception | None = None) -> Outcome:
        with self._lock:
            self._leave(seat)
        return Outcome(seat.sequence, event, error, last=True)


def _own(error: Exception, engine: Engine) -> EngineError:
    """The failure of a pass as an error for one sequence of it: each is raised in a thread of its own."""
    own: EngineError
    if isinstance(error, ModelClosed):
        own = ModelClosed(told(error))
    elif isinstance(error, EngineError):
        own = EngineError(told(error))
    else:
        own = EngineError(f"{engine.name} failed in a pass: {kind(error)}: {told(error)}")
    own.__cause__ = error
    return own


def run(engine: Engine, sequences: Several[Scheduled]) -> Iterator[tuple[Any, Any]]:
    """Run `sequences` to their ends in this thread; gives each and its event, pass by pass.

    What ends one of them is raised, and lets the others go. So does closing the iterator.
    """
    scheduler = Scheduler(engine, max_waiting=len(sequences))
    scheduler.add(*sequences)
    try:
        while scheduler.busy:
            outcomes = scheduler.step()
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                yield outcome.sequence, outcome.event
            if not outcomes:
                sleep(IDLE)  # another scheduler of this engine holds the slots
    finally:
        scheduler.drain()


def decode(engine: Engine, requests: Several[Request], options: GenerationOptions) -> Iterator[StepEvent]:
    """Decode `requests` over one engine in this thread: the events of all, pass by pass.

    Raises `InvalidRequest` before any work is done.
    """
    options.check(engine.contract)
    sequences = [Sequence(request, options, engine.contract, index) for index, request in enumerate(requests)]
    return (event for _, event in run(engine, sequences))
