"""`Session`: state shared by the parts of gpu-check that run in one process.

    engine = session.once(open_eager)       # opened by the first part that needs it
    session.left()                          # seconds

This file imports nothing heavy, since a part that times a start needs a process that has not imported torch.
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
    """Settings of every process: sizes, engines requested by name, and a folder for built files."""

    folder: Path
    sizes: Sizes = FULL
    engines: tuple[str, ...] = ()


class Session:
    """State of a process. Attributes: `setup`, and `found`, the results of earlier parts by name."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.found: dict[str, Any] = {}
        self.opened = ExitStack()
        self._made: dict[Any, Any] = {}
        self._end = time.monotonic()

    def begin(self, seconds: float, found: dict[str, Any]) -> None:
        """Start another part, which has `seconds`."""
        self.found, self._end = found, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left for the part."""
        return self._end - time.monotonic()

    def once(self, make: Callable[["Session"], T]) -> T:
        """The result of `make(self)`, which is computed once."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    def forget(self, make: Callable[["Session"], Any]) -> None:
        """Drop the result of `make`."""
        self._made.pop(make, None)

    def wants(self, engine: str) -> bool:
        """Whether to try `engine`; if engines were requested by name or prefix, only those are tried."""
        asked = self.setup.engines
        return not asked or any(begins(name, engine) for name in asked)

    def ceiling(self, name: str) -> float:
        """A number of the part `ceilings`, which runs now if it has not run yet."""
        from gpu import device

        found: dict[str, float] = self.found.get("ceilings") or self.once(device.ceilings)
        return found[name]


def begins(name: str, engine: str) -> bool:
    """Whether the name of `engine` is `name` or starts with it and a separator."""
    return engine == name or engine.startswith((f"{name}-", f"{name} "))


@dataclass
class Failures:
    """The failures of a part, as sentences."""

    told: list[str] = field(default_factory=list)

    def unless(self, fine: bool, what: str) -> None:
        """Add the failure `what` unless `fine`."""
        if not fine:
            self.told.append(what)
