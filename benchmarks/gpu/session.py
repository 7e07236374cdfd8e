"""`Session`: what the parts of gpu-check that run in one process share.

    engine = session.once(open_eager)       # opened by the first part that wants it
    session.left()                          # seconds

Importing this file imports nothing heavy: a part that times a start begins in a process that knows no torch.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpu.sizes import FULL, Sizes

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What is the same in every process: sizes, engines asked for by name, and a folder for what is built."""

    folder: Path
    sizes: Sizes = FULL
    engines: tuple[str, ...] = ()


class Session:
    """Attributes: `setup`, and `found`, the results of the parts that ran before, by name."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.found: dict[str, Any] = {}
        self.opened = ExitStack()
        self._made: dict[Any, Any] = {}
        self._end = time.monotonic()

    def begin(self, seconds: float, found: dict[str, Any]) -> None:
        """Another part begins, which has `seconds`."""
        self.found, self._end = found, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that the part has left."""
        return self._end - time.monotonic()

    def once(self, make: Callable[["Session"], T]) -> T:
        """What `make` makes of this session, made once."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def forget(self, make: Callable[["Session"], Any]) -> None:
        """Let go of what `make` made."""
        self._made.pop(make, None)

    def wants(self, engine: str) -> bool:
        """Whether `engine` is to be tried: all are, unless some were asked for by name, or by how it begins."""
        asked = self.setup.engines
        return not asked or any(begins(name, engine) for name in asked)

    def ceiling(self, name: str) -> float:
        """A number of the part `ceilings`, which is measured now if it has not been."""
        from gpu import device

        found: dict[str, float] = self.found.get("ceilings") or self.once(device.ceilings)
        return found[name]


def begins(name: str, engine: str) -> bool:
    """Whether `engine` is called `name`, or that and more."""
    return engine == name or engine.startswith((f"{name}-", f"{name} "))


@dataclass
class Failures:
    """What a part found wrong, in sentences."""

    told: list[str] = field(default_factory=list)

    def unless(self, fine: bool, what: str) -> None:
        """Remember `what`, unless all is fine."""
        if not fine:
            self.told.append(what)
