"""`Settings`: the settings of a server that do not depend on its model.

Settings(name="tiny", keys=Keys(["0123456789abcdef"]))
"""

from dataclasses import dataclass

from dpad.serving.keys import Keys

PATIENCE = 30.0  # default of `patience_seconds`


@dataclass(frozen=True)
class Settings:
    """The settings of one server.

    Attributes:
        name: the name of the model for clients.
        keys: accepted API keys; None accepts everybody who can reach the server.
        hosts: accepted `Host` names, if there are no keys; empty accepts any.
        origins: origins of web pages that may call the server (CORS).
        most_body: most bytes of a request's body.
        read_seconds: most seconds for receiving the head of a request, and then its body.
        drain_seconds: most seconds for finishing requests after a signal.
        patience_seconds: most seconds for a pass, until the server is not ready.
        max_waiting: sequences that may wait behind those that are decoded.
    """

    name: str
    keys: Keys | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    most_body: int = 1 << 20
    read_seconds: float = 30.0
    drain_seconds: float = 30.0
    patience_seconds: float = PATIENCE
    max_waiting: int = 64
