"""`Protocol`: uvicorn's HTTP/1.1 with limits for clients that never end a request's head, or never read the answer.

    uvicorn.Config(app, http=protocol(30.0))

Such a connection would hold a file descriptor, and a place among the running sequences, for ever. `Guard` limits what
comes after the head.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Closes a connection if a head takes over `seconds`, or if the client reads nothing for as long."""

    seconds: float
    _slow: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a head or of a body."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Start the clock: the client does not read what was written."""
        super().pause_writing()
        self._full = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock: the client reads again."""
        if self._full is not None:
            self._full.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock if a head is due, and stop it when the head has ended."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._slow is None:
            self._slow = self.loop.call_later(self.seconds, self.transport.close)

    def _unwatch(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def protocol(seconds: float) -> type[Protocol]:
    """Make a protocol class that waits `seconds`."""
    return type("Protocol", (Protocol,), {"seconds": seconds})
