"""The engine's process: it opens the model, runs the sequences that the server submits, and sends back their events.

    python -m dpad.serving.engine_main 7        # 7 is its end of a socket pair

One thread takes messages, one runs passes, and the main thread sends, so that a slow reader delays no pass.
The process ends when the server closes the socket or is gone, whatever it is doing.
"""

import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pickle import UnpicklingError
from queue import Empty, SimpleQueue
from socket import socket
from threading import Lock, Thread
from typing import BinaryIO

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.scheduler import Outcome
from dpad.runtime.errors import DpadError, EngineError
from dpad.runtime.model import Call, DiffusionModel
from dpad.runtime.show import kind, warned
from dpad.serving.log import where
from dpad.serving.wire import Cancel, Failed, Failure, Opened, Opening, Progress, Submit, Told, packed, read

_GLANCE = 0.01  # seconds until a status is sent that changed without an outcome, as it does for a cancelled sequence
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)

Read = Callable[[], StepEvent]  # returns an event, or raises the error that ended the sequence


class Sequences:
    """The sequences that the server has submitted."""

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model
        self._lock = Lock()
        self._calls: dict[int, Call] = {}
        self._outcomes: SimpleQueue[tuple[int, Read]] = SimpleQueue()

    def take(self, message: Submit | Cancel) -> None:
        """Submit or cancel a sequence."""
        with self._lock:  # a sequence may end before its call is kept
            if isinstance(message, Cancel):
                if (call := self._calls.pop(message.number, None)) is not None:
                    self._model.withdraw(call)
                return
            number, request, options, began = message
            try:
                self._calls[number] = self._model.submit(
                    request, partial(self._deliver, number), began=began, **options
                )
            except Exception as error:
                self._outcomes.put((number, partial(_raise, error)))

    def _deliver(self, number: int, call: Call, outcome: Outcome) -> None:
        """Queue an outcome; the thread of the passes calls this."""
        if outcome.last:
            with self._lock:
                self._calls.pop(number, None)
        self._outcomes.put((number, partial(self._model.event, call, outcome)))

    def told(self, before: Told) -> Told:
        """Wait for outcomes, or for another status than that of `before`, the last message."""
        found: list[tuple[int, Read]] = []
        while not found:
            try:
                found.append(self._outcomes.get(timeout=_GLANCE if any(before.status[:3]) else None))
            except Empty:
                if (status := self._model.status) != before.status:
                    return Told(status, [])
        while not self._outcomes.empty():
            found.append(self._outcomes.get())
        return Told(self._model.status, [(number, _event(read)) for number, read in found])


def _raise(error: Exception) -> StepEvent:
    raise error


def _event(read: Read) -> StepEvent | Failure:
    try:
        return read()
    except Exception as error:
        own = error if isinstance(error, DpadError) else EngineError(f"the engine's process failed: {kind(error)}")
        return Failure(own, where(error))


def main(descriptor: int) -> None:
    """Serve until the socket is closed."""
    for each in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # systemd sends SIGTERM to all processes; the server decides when to end
        signal.signal(each, signal.SIG_IGN)
    with suppress(AttributeError):  # Linux: a process that hangs, and so does not see the socket's end, is killed
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    warnings.formatwarning = warned
    connection = socket(fileno=descriptor)
    connection.set_inheritable(False)
    try:
        _serve(connection)
    except OSError:  # the server is gone
        os._exit(0)


def _serve(connection: socket) -> None:
    def send(message: object) -> None:
        connection.sendall(packed(message))

    incoming, sequences = connection.makefile("rb"), Future[Sequences]()
    opening: Opening = read(incoming)
    Thread(target=_listen, args=(incoming, sequences), daemon=True).start()
    try:
        model = opening.load(opening.directory, **opening.options, progress=lambda *told: send(Progress(*told)))
    except (DpadError, OSError, MemoryError) as error:
        send(Failed(error))
        return
    sequences.set_result(Sequences(model))
    send(Opened(model.facts, model.has_tokenizer))
    told = Told(model.status, [])
    while True:
        send(told := sequences.result().told(told))


def _listen(incoming: BinaryIO, sequences: "Future[Sequences]") -> None:
    """Take messages, and end the process after the last one. The first comes when the model is open."""
    try:
        while (message := _next(incoming)) is not None:
            sequences.result().take(message)
    except Exception:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _next(incoming: BinaryIO) -> Submit | Cancel | None:
    """The next message; None if the server is gone, which may have ended in the middle of one."""
    try:
        message: Submit | Cancel = read(incoming)
    except (EOFError, OSError, UnpicklingError):
        return None
    return message


if __name__ == "__main__":
    main(int(sys.argv[1]))
