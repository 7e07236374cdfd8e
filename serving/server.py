"""`serve`: a service behind uvicorn, until a signal ends it.

with listening("127.0.0.1", 8000) as socket:
    serve(opening, Settings(name="tiny"), socket, progress, ready)      # gives the exit status
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
from dpad.runtime.show import told
from dpad.serving.app import application
from dpad.serving.engine_process import Tell
from dpad.serving.log import logger, setup
from dpad.serving.protocol import protocol
from dpad.serving.remote_model import RemoteModel
from dpad.serving.service import Service
from dpad.serving.settings import Settings
from dpad.serving.wire import Opening

Ready = Callable[[str], None]
_BACKLOG = 2048
_FLUSH = 5  # most seconds for clients to receive the ends of their answers


def listening(host: str, port: int) -> sockets.socket:
    """Open a listening socket; raises `InvalidRequest` if that fails, before a model is opened.

    Unlike `socket.create_server`, it names the protocol. Without that asyncio does not set TCP_NODELAY, and every
    answer over a kept-alive connection waits 40 ms for an acknowledgement.
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
    """A uvicorn server that reports when it is ready, and finishes running requests before it stops."""

    def __init__(
        self, config: uvicorn.Config, service: Service, model: RemoteModel, seconds: float, ready: Callable[[], None]
    ) -> None:
        """`seconds` is how long a signal leaves to running requests; `ready` is called when the server answers."""
        super().__init__(config)
        self._admission, self._model = service.admission, model
        self._seconds, self._ready = seconds, ready
        self._end = inf
        self.lost = 0  # sequences that a signal, its time limit or the engine's end has cut off

    async def startup(self, sockets: list[sockets.socket] | None = None) -> None:
        """Start as uvicorn does, then call `ready`."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal refuses new requests and gives running ones their time; the second ends them at once."""
        admission = self._admission
        self._end = monotonic() if admission.draining else monotonic() + self._seconds
        if not admission.draining:
            facts = {"signal": Signals(sig).name, "inside": admission.inside, "seconds": self._seconds}
            logger.info("draining", extra={"facts": facts})
            self.lost = -self._model.lost
        admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Decide ten times a second whether to stop."""
        admission = self._admission
        if admission.draining and (not admission.inside or monotonic() >= self._end):
            self.lost += admission.inside + self._model.lost
            self._model.close()  # what is left ends with an error of its own
            return True
        return await super().on_tick(counter)


def serve(opening: Opening, settings: Settings, socket: sockets.socket, progress: Tell, ready: Ready) -> int:
    """Open a model in another process, and answer requests until SIGTERM or SIGINT.

    Returns the exit status: 0, or 1 if a request was cut off. `progress` is called while the model is opened, and
    `ready` with the engine's name when the server answers. Raises the errors that opening the model raises.
    """
    setup()
    return asyncio.run(_serve(opening, settings, socket, progress, ready))


async def _serve(opening: Opening, settings: Settings, socket: sockets.socket, progress: Tell, ready: Ready) -> int:
    async with RemoteModel.opened(opening, progress) as model:
        service = Service(model, settings)
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
        server = Server(config, service, model, settings.drain_seconds, lambda: ready(model.facts.engine))
        await server.serve([socket])
    logger.info("ended", extra={"facts": {"lost": server.lost}})
    return 1 if server.lost else 0
