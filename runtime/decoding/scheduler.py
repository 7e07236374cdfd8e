"""`Scheduler`: continuous batching. Sequences join and leave between any two passes.

    scheduler = Scheduler(engine, max_running=16)
    scheduler.add(sequence)
    while scheduler.busy:
        for outcome in scheduler.step():        # one pass
            outcome.sequence, outcome.event, outcome.error

Sequences wait in order of arrival and join when enough slots are free. A sequence then holds the most slots that it
can need, so that a running one never runs out. `Turns` chooses the sequences that share a pass.
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
from dpad.runtime.decoding.limits import RUNNING, WAITING, Status, check_room, limits
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.part import Scheduled
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.turns import Seat, Turns
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import EngineError, ModelClosed, QueueFull
from dpad.runtime.show import counted, kind, told

_LAST = 8  # passes by which the next one is predicted
IDLE = 1e-3  # seconds until a scheduler that found no free slots tries again


class Outcome(NamedTuple):
    """A sequence's result of a pass: its event, or the error that ended it. `last` marks the last one of a sequence."""

    sequence: Any
    event: Any = None
    error: Exception | None = None
    last: bool = False


class Scheduler:
    """Runs sequences over one engine.

    Any thread may call `add`, `cancel` and `drain` at any time; one thread at a time may call `step`. The code of
    sequences and of their schedules runs outside the lock.
    """

    def __init__(self, engine: Engine, max_running: int | None = None, max_waiting: int = WAITING) -> None:
        """`max_running` None is four times what a pass takes; raises `InvalidRequest` for values that are no limits."""
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
        self._timed: list[Seat] = []  # the waiting and running ones that have a deadline
        self.passes = 0
        self._seconds: deque[float] = deque(maxlen=_LAST)  # of the last passes

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def status(self) -> Status:
        """The current load, for any thread; `slots` includes those that other schedulers of the engine hold."""
        slots = self.engine.slots
        return Status(len(self._running), len(self._waiting), slots.most - slots.free, self.passes)

    def check(self, sequence: Scheduled) -> None:
        """Raise `InvalidRequest` for a sequence that the pool can never hold."""
        check_room(sequence.need, self.engine.slots.most, self.engine.name)

    def add(self, *sequences: Scheduled) -> None:
        """Queue all of the sequences, or none.

        Raises `InvalidRequest` as `check` does, and `QueueFull` if too many wait.
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
        """Remove a sequence; its slots are free at once, or after the pass that it takes part in.

        It never waits for the lock: the garbage collector may call it for a dropped stream, in any thread, even in
        one that holds the lock.
        """
        self._cancelled.put(sequence)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_cancelled()
            finally:
                self._lock.release()

    def drain(self) -> None:
        """Remove all sequences."""
        with self._lock:
            for seat in [*self._waiting, *self._running]:
                self._drop(seat)

    def step(self) -> list[Outcome]:
        """Run one pass; returns the outcome of each of its sequences, and of those that expired or could not join."""
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
        except BaseException:  # an interrupt, too, must free the slots
            with self._lock:
                for seat in held:
                    self._leave(seat)
            raise

    def _pass(self, members: list[Seat], others: list[Seat]) -> list[Outcome]:
        """Run one step of the engine while `others` wait; if it fails, all its members fail."""
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
            self._seconds.append(perf_counter() - start)
            for seat in others:
                seat.sequence.waited += self._seconds[-1]
        return [self._take(seat, answer) for seat, answer in zip(members, answers)]

    def _drop_cancelled(self) -> None:
        """Under the lock: remove the sequences for which `cancel` was called."""
        while not self._cancelled.empty():
            sequence = self._cancelled.get()
            for seat in [seat for seat in (*self._waiting, *self._running) if seat.sequence is sequence]:
                self._drop(seat)

    def _drop(self, seat: Seat) -> None:
        """Under the lock: remove a sequence, or mark it for removal if `step` is working on it."""
        seat.cancelled = True
        if not seat.held:
            self._leave(seat)

    def _late(self) -> list[Seat]:
        """Under the lock: remove the sequences whose deadline would pass before another pass ends.

        A pass is expected to take at least as long as the shortest of the last ones.
        """
        now = perf_counter()
        soonest = now + min(self._seconds, default=0.0)
        late = [seat for seat in self._timed if seat.sequence.deadline <= soonest]
        for seat in late:
            if seat.slots is None:
                seat.sequence.waited = now - seat.since
            self._leave(seat)
        return late

    def _leave(self, seat: Seat) -> None:
        """Under the lock: remove a sequence and free its slots."""
        if seat in self._timed:
            self._timed.remove(seat)
        if seat.slots is None:
            with suppress(ValueError):  # one that expired was removed before
                self._waiting.remove(seat)
        elif seat in self._running:
            self._running.remove(seat)
            self.engine.slots.give(seat.slots)

    def _admit(self) -> list[Seat]:
        """Under the lock: admit waiting sequences in order while slots are free."""
        joining = []
        while self._waiting and len(self._running) < self.max_running:
            slots = self.engine.slots.take(self._waiting[0].sequence.need)
            if slots is None:
                break
            seat = self._waiting.popleft()
            seat.slots, seat.held = slots, True
            if self.passes > seat.passes:  # otherwise no pass ran meanwhile, and it has not waited
                seat.sequence.waited = perf_counter() - seat.since
            self._running.append(seat)
            joining.append(seat)
        return joining

    def _join(self, seat: Seat) -> Outcome | None:
        """Let a sequence begin; returns its last outcome if it could not."""
        assert seat.slots is not None
        try:
            seat.sequence.join(seat.slots)
            self._ready(seat)
        except Exception as error:
            return self._end(seat, error=error)
        return self._end(seat) if self._release(seat) else None

    def _ready(self, seat: Seat) -> None:
        """Get the sequence's part for its next pass."""
        seat.prepare(seat.sequence.part(), self.engine)

    def _take(self, seat: Seat, answer: Any) -> Outcome:
        """Give a sequence the answer of the pass; returns its outcome."""
        try:
            event = seat.sequence.take(answer)
            if not seat.sequence.finished:
                self._ready(seat)
        except Exception as error:  # it concerns this sequence alone: its logits, or its schedule
            return self._end(seat, error=error)
        if seat.sequence.finished or self._release(seat):
            return self._end(seat, event)
        return Outcome(seat.sequence, event)

    def _release(self, seat: Seat) -> bool:
        """Release a sequence that is ready for its next pass; returns True if it was cancelled meanwhile."""
        with self._lock:
            seat.held = seat.cancelled
            return seat.cancelled

    def _end(self, seat: Seat, event: Any = None, error: Exception | None = None) -> Outcome:
        with self._lock:
            self._leave(seat)
        return Outcome(seat.sequence, event, error, last=True)


def _own(error: Exception, engine: Engine) -> EngineError:
    """A copy of a pass's failure for one of its sequences, because each is raised in another thread."""
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
    """Run `sequences` to their ends in this thread; yields each sequence and its event, pass by pass.

    An error that ends one sequence is raised and ends the others too. Closing the iterator ends all of them.
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
    """Decode `requests` over one engine in this thread; yields the events of all, pass by pass.

    Raises `InvalidRequest` before any pass.
    """
    options.check(engine.contract)
    sequences = [Sequence(request, options, engine.contract, index) for index, request in enumerate(requests)]
    return (event for _, event in run(engine, sequences))
