"""`Protocol`: uvicorn's HTTP/1.1, that hangs up on who never ends the head of a request, or never reads the answer.

    uvicorn.Config(app, http=protocol(30.0))

Each such connection would hold a file descriptor for ever, and a place among those that are decoded. What comes after
the head has limits of its own (`Guard`).
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """With a limit for the time that a head takes, and for that in which nothing of a full buffer is read."""

    seconds: float
    _slow: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is due."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something of a head, or of what follows it."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read what was written."""
        super().pause_writing()
        self._full = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._full is not None:
            self._full.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where a head has begun and not ended, and stop it where it has."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._slow is None:
            self._slow = self.loop.call_later(self.seconds, self.transport.close)

    def _unwatch(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def protocol(seconds: float) -> type[Protocol]:
    """One for servers that wait so long."""
    return type("Protocol", (Protocol,), {"seconds": seconds})
