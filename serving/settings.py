"""`Settings`: how a server behaves that its model does not decide.

Settings(name="tiny", keys=Keys(["0123456789abcdef"]))
"""

from dataclasses import dataclass

from dpad.serving.keys import Keys

PATIENCE = 30.0  # seconds that a pass may take, unless told otherwise


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Attributes:
        name: what clients call the model.
        keys: of those who may ask; None is everybody who can reach it.
        hosts: names that it answers to where there are no keys; none is any.
        origins: of pages in browsers that may ask (CORS).
        most_body: bytes of a request's body.
        read_seconds: in which the head of a request has to come, and then its body.
        drain_seconds: that a signal leaves to what runs.
        patience_seconds: that a pass may take before the server is not ready.
    """

    name: str
    keys: Keys | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    most_body: int = 1 << 20
    read_seconds: float = 30.0
    drain_seconds: float = 30.0
    patience_seconds: float = PATIENCE
