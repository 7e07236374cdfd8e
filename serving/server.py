"""`serve`: a service behind uvicorn, until a signal ends it.

with listening("127.0.0.1", 8000) as socket:
    serve(model, "tiny", socket, ready)     # gives the exit status
"""

import socket as sockets
from collections.abc import Callable

import uvicorn

from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel
from dpad.runtime.show import told
from dpad.serving.app import application
from dpad.serving.log import setup
from dpad.serving.service import Service

_BACKLOG = 2048


def listening(host: str, port: int) -> sockets.socket:
    """A socket at an address; raises `InvalidRequest` for one that cannot be had, before a model is opened."""
    try:
        family = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0][0]
        return sockets.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"cannot listen at {host}, port {port}: {told(error)}; choose another") from error


def address(socket: sockets.socket) -> str:
    """The URL of a socket."""
    host, port = socket.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, that says when it is there."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[sockets.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        self._ready()


def serve(model: DiffusionModel, name: str, socket: sockets.socket, ready: Callable[[], None]) -> int:
    """Answer requests until SIGTERM or SIGINT; gives the exit status of the process. `ready` is called when it does."""
    setup()
    app = application(Service(model, name))
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="off")
    Server(config, ready).run([socket])
    return 0
