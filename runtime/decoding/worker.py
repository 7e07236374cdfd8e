"""`Worker`: the one thread that runs the passes of a scheduler, for callers in any thread or event loop.

    worker = Worker(scheduler)
    for outcome in worker.outcomes(sequences): ...
    async for outcome in worker.outcomes_async(sequences): ...

The thread lives while there is work: it starts with the first sequence and ends behind the last, so that a model which
is dropped leaves nothing behind. Whoever stops listening, by closing an iterator, dropping it, an error or a cancelled
task, has its sequences taken out before the next pass. So has the interpreter when it ends, and waits for the pass that
runs: a backend must not find it gone.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from os import getpid
from queue import SimpleQueue
from threading import Lock, Thread, current_thread
from time import sleep
from weakref import finalize

from dpad.runtime.decoding.part import Scheduled
from dpad.runtime.decoding.scheduler import IDLE, Outcome, Scheduler
from dpad.runtime.errors import DpadError, EngineError, InvalidRequest, ModelClosed
from dpad.runtime.show import kind, told

Deliver = Callable[[Outcome], None]
NO_OTHER = "a model cannot be pickled or sent to a process; load the bundle in each process"


class Worker:
    """Drives one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = Lock()
        self._threads: list[Thread] = []  # one at most
        self._listeners: dict[Scheduled, Deliver] = {}  # each method of it is atomic, and is called without the lock
        self._closed: ModelClosed | None = None
        self._process = getpid()
        finalize(self, _finish, scheduler, self._threads, self._process)

    @property
    def is_here(self) -> bool:
        """Whether this is its process: in one that was forked, locks may be held by threads that are not there."""
        return getpid() == self._process

    def outcomes(self, sequences: Sequence[Scheduled], every: bool = True) -> Generator[Outcome, None, None]:
        """What becomes of `sequences`, pass by pass, an error too; without `every` only how each of them ends.

        Raises `QueueFull`, `InvalidRequest` or `ModelClosed` if they cannot wait.
        """
        box: SimpleQueue[Outcome] = SimpleQueue()
        left = len(sequences)

        def deliver(outcome: Outcome) -> None:
            if every or outcome.last:
                box.put(outcome)

        try:
            self._submit(sequences, deliver)
            while left:
                outcome = box.get()
                left -= outcome.last
                yield outcome
        finally:
            self._withdraw(sequences)

    async def outcomes_async(self, sequences: Sequence[Scheduled], every: bool = True) -> AsyncGenerator[Outcome, None]:
        """As `outcomes`, in an event loop, which it does not block."""
        box: asyncio.Queue[Outcome] = asyncio.Queue()
        loop, left = asyncio.get_running_loop(), len(sequences)

        def deliver(outcome: Outcome) -> None:
            if every or outcome.last or loop.is_closed():  # which the call then raises
                loop.call_soon_threadsafe(box.put_nowait, outcome)

        try:
            self._submit(sequences, deliver)
            while left:
                outcome = await box.get()
                left -= outcome.last
                yield outcome
        finally:
            self._withdraw(sequences)

    def close(self, error: ModelClosed) -> None:
        """End what runs and what waits with `error`, refuse what comes, and wait for the end of the pass that runs."""
        with self._lock:
            self._closed = error
        self._end_all(lambda: ModelClosed(*error.args))
        _join(self._threads)

    def _submit(self, sequences: Sequence[Scheduled], deliver: Deliver) -> None:
        if current_thread() in self._threads:
            raise InvalidRequest("a schedule cannot generate with the model that asks it; prepare what it needs before")
        if not self.is_here:
            raise InvalidRequest(NO_OTHER)
        with self._lock:
            if self._closed is not None:
                raise ModelClosed(*self._closed.args)
            self._listeners |= dict.fromkeys(sequences, deliver)
            self._scheduler.add(*sequences)
            if not any(thread.is_alive() for thread in self._threads):
                self._start()

    def _start(self) -> None:
        thread = Thread(target=self._work, name="dpad-passes", daemon=True)
        self._threads[:] = [thread]  # before it runs: an interrupt may end `start` when it does
        try:
            thread.start()
        except RuntimeError as error:
            raise EngineError(f"no thread can be started for the passes: {told(error)}; end some others") from error

    def _withdraw(self, sequences: Sequence[Scheduled]) -> None:
        """Nobody listens any more; what has not ended is cancelled. It takes no lock: see `Scheduler.cancel`."""
        for sequence in sequences:
            if self._listeners.pop(sequence, None) is not None:
                self._scheduler.cancel(sequence)

    def _work(self) -> None:
        """Run passes until nothing is left to do."""
        while True:
            with self._lock:
                if current_thread() not in self._threads:
                    return
                if not self._scheduler.busy:
                    self._threads.clear()
                    return
            try:
                outcomes = self._scheduler.step()
                for outcome in outcomes:
                    self._deliver(outcome)
                if not outcomes:
                    sleep(IDLE)  # another scheduler of this engine holds the slots
            except BaseException as error:  # of the scheduler itself: nobody may wait for ever
                self._end_all(partial(_failure, error))

    def _deliver(self, outcome: Outcome) -> None:
        take = self._listeners.pop if outcome.last else self._listeners.get
        deliver = take(outcome.sequence, None)
        if deliver is not None and not _tell(deliver, outcome):
            self._withdraw([outcome.sequence])

    def _end_all(self, error: Callable[[], DpadError]) -> None:
        """End all sequences, each with an `error` of its own."""
        self._scheduler.drain()
        with suppress(KeyError):  # as `popitem` says that none is left
            while True:
                sequence, deliver = self._listeners.popitem()
                _tell(deliver, Outcome(sequence, error=error(), last=True))


def _finish(scheduler: Scheduler, threads: list[Thread], process: int) -> None:
    """Let the thread of a worker end behind its pass."""
    if getpid() == process:
        scheduler.drain()
        _join(threads)


def _join(threads: list[Thread]) -> None:
    """Wait for those that run."""
    for thread in threads[:]:
        if thread.is_alive() and thread is not current_thread():
            thread.join()


def _tell(deliver: Deliver, outcome: Outcome) -> bool:
    """Whether somebody could be told: an event loop may be closed."""
    try:
        deliver(outcome)
    except RuntimeError:
        return False
    return True


def _failure(error: BaseException) -> DpadError:
    failure = EngineError(f"the scheduler failed: {kind(error)}: {told(error)}")
    failure.__cause__ = error
    return failure
