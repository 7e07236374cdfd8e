"""`Worker`: the one thread that runs the passes of a scheduler, for callers in any thread or event loop.

    worker = Worker(scheduler)
    for outcome in worker.outcomes(sequences): ...
    async for outcome in worker.outcomes_async(sequences): ...

The thread lives while there is work: it starts with the first sequence and ends after the last, so that a model that
is dropped leaves no thread behind. When a caller closes or drops its iterator, fails or has its task cancelled, its
sequences are removed before the next pass. When the interpreter exits, all sequences are removed, and the exit waits
for the running pass: a backend must not be torn down in the middle of one.
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
    """Drives one scheduler with one thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = Lock()
        self._threads: list[Thread] = []  # one at most
        self._listeners: dict[Scheduled, Deliver] = {}  # used without the lock: each of a dict's methods is atomic
        self._closed: ModelClosed | None = None
        self._process = getpid()
        finalize(self, _finish, scheduler, self._threads, self._process)

    @property
    def is_here(self) -> bool:
        """Whether this process created the worker. In a forked one, locks may be held by threads that do not exist."""
        return getpid() == self._process

    def outcomes(self, sequences: Sequence[Scheduled], every: bool = True) -> Generator[Outcome, None, None]:
        """Yield the outcomes of `sequences`, errors included, pass by pass; without `every` only the last of each.

        Raises `QueueFull`, `InvalidRequest` or `ModelClosed` if the sequences cannot be queued.
        """
        box: SimpleQueue[Outcome] = SimpleQueue()
        left = len(sequences)

        def deliver(outcome: Outcome) -> None:
            if every or outcome.last:
                box.put(outcome)

        try:
            self.submit(sequences, deliver)
            while left:
                outcome = box.get()
                left -= outcome.last
                yield outcome
        finally:
            self.withdraw(sequences)

    async def outcomes_async(self, sequences: Sequence[Scheduled], every: bool = True) -> AsyncGenerator[Outcome, None]:
        """Yield what `outcomes` yields, in an event loop, without blocking it."""
        box: asyncio.Queue[Outcome] = asyncio.Queue()
        loop, left = asyncio.get_running_loop(), len(sequences)

        def deliver(outcome: Outcome) -> None:
            if every or outcome.last or loop.is_closed():  # the call raises RuntimeError if the loop is closed
                loop.call_soon_threadsafe(box.put_nowait, outcome)

        try:
            self.submit(sequences, deliver)
            while left:
                outcome = await box.get()
                left -= outcome.last
                yield outcome
        finally:
            self.withdraw(sequences)

    def close(self, error: ModelClosed) -> None:
        """End all sequences with `error`, refuse new ones with it, and wait for the running pass to end."""
        with self._lock:
            self._closed = error
        self._end_all(lambda: ModelClosed(*error.args))
        _join(self._threads)

    def submit(self, sequences: Sequence[Scheduled], deliver: Deliver) -> None:
        """Queue `sequences`; `deliver` is called with each outcome, in the thread of the passes.

        Raises `QueueFull`, `InvalidRequest` or `ModelClosed` if they cannot be queued; they must be withdrawn then.
        """
        if current_thread() in self._threads:
            raise InvalidRequest("a schedule cannot generate with the model that calls it; prepare its data beforehand")
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
        self._threads[:] = [thread]  # before `start`, which an interrupt may end when the thread already runs
        try:
            thread.start()
        except RuntimeError as error:
            raise EngineError(f"no thread can be started for the passes: {told(error)}; end other threads") from error

    def withdraw(self, sequences: Sequence[Scheduled]) -> None:
        """Drop the listeners of `sequences`; cancel what has not ended. Takes no lock: see `Scheduler.cancel`."""
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
            except BaseException as error:  # the scheduler itself failed: callers must not wait for ever
                self._end_all(partial(_failure, error))

    def _deliver(self, outcome: Outcome) -> None:
        take = self._listeners.pop if outcome.last else self._listeners.get
        deliver = take(outcome.sequence, None)
        if deliver is not None and not _tell(deliver, outcome):
            self.withdraw([outcome.sequence])

    def _end_all(self, error: Callable[[], DpadError]) -> None:
        """End all sequences, each with an `error` of its own."""
        self._scheduler.drain()
        with suppress(KeyError):  # `popitem` raises it when no listener is left
            while True:
                sequence, deliver = self._listeners.popitem()
                _tell(deliver, Outcome(sequence, error=error(), last=True))


def _finish(scheduler: Scheduler, threads: list[Thread], process: int) -> None:
    """Drain the scheduler and wait until the worker's thread has ended its pass."""
    if getpid() == process:
        scheduler.drain()
        _join(threads)


def _join(threads: list[Thread]) -> None:
    """Wait for the threads that run, except the current one."""
    for thread in threads[:]:
        if thread.is_alive() and thread is not current_thread():
            thread.join()


def _tell(deliver: Deliver, outcome: Outcome) -> bool:
    """Deliver an outcome; returns False if its event loop is closed."""
    try:
        deliver(outcome)
    except RuntimeError:
        return False
    return True


def _failure(error: BaseException) -> DpadError:
    failure = EngineError(f"the scheduler failed: {kind(error)}: {told(error)}")
    failure.__cause__ = error
    return failure
