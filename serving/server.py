"""`serve`: a service behind uvicorn, until a signal ends it.

with listening("127.0.0.1", 8000) as socket:
    serve(model, Settings(name="tiny"), socket, ready)     # gives the exit status
"""

import asyncio
import socket as sockets
from collections.abc import Callable
from math import inf
from signal import Signals
from time import monotonic
from types import FrameType

import uvicorn

from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel
from dpad.runtime.show import told
from dpad.serving.app import application
from dpad.serving.log import logger, setup
from dpad.serving.protocol import protocol
from dpad.serving.service import Service
from dpad.serving.settings import Settings

_BACKLOG = 2048
_FLUSH = 5  # seconds in which clients take the ends of their answers


def listening(host: str, port: int) -> sockets.socket:
    """A socket at an address; raises `InvalidRequest` for one that cannot be had, before a model is opened.

    It names its protocol, as `socket.create_server` does not: else asyncio leaves TCP_NODELAY out, and every answer
    over a connection that stays waits 40 ms for an acknowledgement.
    """
    listener = None
    try:
        family, kind, protocol, _, where = sockets.getaddrinfo(
            host, port, type=sockets.SOCK_STREAM, proto=sockets.IPPROTO_TCP, flags=sockets.AI_PASSIVE
        )[0]
        listener = sockets.socket(family, kind, protocol)
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
        return listener
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise InvalidRequest(f"cannot listen at {host}, port {port}: {told(error)}; choose another") from error


def address(socket: sockets.socket) -> str:
    """The URL of a socket."""
    host, port = socket.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, that says when it is there, and lets what runs end before it goes."""

    def __init__(self, config: uvicorn.Config, service: Service, settings: Settings, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._seconds, self._ready = service, settings.drain_seconds, ready
        self._end = inf
        self.lost = 0  # sequences that a signal, or its limit, ended

    async def startup(self, sockets: list[sockets.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal begins the end: no request is let in, and those that run have their time; a second ends it."""
        admission = self._service.admission
        self._end = monotonic() if admission.draining else monotonic() + self._seconds
        if not admission.draining:
            facts = {"signal": Signals(sig).name, "inside": admission.inside, "seconds": self._seconds}
            logger.info("draining", extra={"facts": facts})
        admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to go."""
        admission = self._service.admission
        if admission.draining and (not admission.inside or monotonic() >= self._end):
            self.lost = admission.inside
            await asyncio.to_thread(self._service.model.close)  # what is left ends with an error of its own
            return True
        return await super().on_tick(counter)


def serve(model: DiffusionModel, settings: Settings, socket: sockets.socket, ready: Callable[[], None]) -> int:
    """Answer requests until SIGTERM or SIGINT; gives the exit status: 0, or 1 where a request was cut off.

    `ready` is called when it answers.
    """
    setup()
    service = Service(model, settings.name)
    config = uvicorn.Config(
        application(service, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        http=protocol(settings.read_seconds),
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=_FLUSH,
    )
    server = Server(config, service, settings, ready)
    server.run([socket])
    logger.info("ended", extra={"facts": {"lost": server.lost}})
    return 1 if server.lost else 0
