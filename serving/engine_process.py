"""`EngineProcess`: the process in which a server's engine runs, from its start to its end.

    process, opened = await EngineProcess.start(opening, progress)      # raises what loading raises there
    process.send(Submit(...))
    await process.listen(take)                  # returns when the process has ended
    process.ending                              # {"signal": "SIGKILL"}

The process has a session of its own, so that Ctrl-C in a terminal reaches only the server.
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from contextlib import suppress
from signal import Signals
from time import monotonic
from typing import Any

from dpad.runtime.errors import EngineError
from dpad.serving.wire import Failed, Opened, Opening, Progress, Told, packed, received

Tell = Callable[[str, int, int | None], None]  # as the `progress` of `dpad.load`
_GRACE = 2.0  # seconds that a process has to end after its socket is closed, before it is killed
_ENDED = (EOFError, OSError)


class EngineProcess:
    """A process and the socket to it."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._began = monotonic()
        self.seconds = 0.0  # time that opening the model took

    @classmethod
    async def start(cls, opening: Opening, progress: Tell) -> tuple["EngineProcess", Opened]:
        """Start a process, and wait until its model is open.

        Raises the error that loading raises there, and `EngineError` if the process ends before.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "dpad.serving.engine_main", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        own = cls(process, *await asyncio.open_connection(sock=ours))
        try:
            return own, await own._opened(opening, progress)
        except BaseException:
            await own.stop()
            raise

    async def _opened(self, opening: Opening, progress: Tell) -> Opened:
        self.send(opening)
        while True:
            try:
                message = await received(self._reader)
            except _ENDED:
                await self.stop()
                raise EngineError(
                    f"the process that opened the bundle ended ({_spelled(self.ending)}); its messages stand above"
                ) from None
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, Opened):
                self.seconds = monotonic() - self._began
                return message
            assert isinstance(message, Progress)
            progress(*message)

    @property
    def number(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ending(self) -> dict[str, Any]:
        """How it ended: the name of a signal, or an exit status."""
        status = self._process.returncode
        if status is None or status >= 0:
            return {"status": status}
        return {"signal": next((each.name for each in Signals if each == -status), -status)}

    def send(self, message: object) -> None:
        """Send a message; it is lost if the process has ended."""
        self._writer.write(packed(message))

    @property
    def unsent(self) -> int:
        """Bytes of messages that the process has not taken."""
        return self._writer.transport.get_write_buffer_size()

    async def listen(self, take: Callable[[Told], None]) -> None:
        """Call `take` with each message, until the process has ended or has closed its end."""
        reading, ending = asyncio.ensure_future(self._read(take)), asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            ending.cancel()

    async def _read(self, take: Callable[[Told], None]) -> None:
        with suppress(*_ENDED):
            while True:
                take(await received(self._reader))

    async def stop(self) -> None:
        """Close the socket, which ends the process, and wait for it; kill it if it does not end in time."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _spelled(ending: dict[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in ending.items())
