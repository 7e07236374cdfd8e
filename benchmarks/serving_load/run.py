"""`Run`: what every scenario is given: the bundle, how large it is to be, and where progress goes.

run = Run(bundle, SHORT)
with run.null(batch=4) as target: ...       # an engine of `PASS_MS` a pass
run.body(32, stream=True)                   # a request of one pass a token
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from serving_load.target import Target

PASS_MS = 5.0
PROMPT = "What is 53 + 34?"


@dataclass(frozen=True)
class Size:
    """How much a scenario does: requests of a kind, seconds of a load, and so on."""

    samples: int = 200
    kills: int = 25
    seconds: float = 20.0
    clients: int = 200
    disconnects: int = 1000
    readers: int = 50
    heads: int = 500
    prompts: int = 100
    warm_up: int = 100
    rounds: int = 100
    tokens: int = 32
    minutes: float = 20.0
    judges_memory: bool = True


FULL = Size()
SHORT = Size(
    samples=6, kills=2, seconds=0.5, clients=30, disconnects=20, readers=4, heads=10, prompts=6, warm_up=0, rounds=1,
    tokens=16, minutes=0.02, judges_memory=False,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of the scenarios."""

    bundle: Path
    size: Size

    def null(self, *arguments: object, batch: int = 8, pass_ms: float = PASS_MS) -> Target:
        """A server over the engine that computes nothing."""
        return Target(self.bundle, *arguments, pass_ms=pass_ms, batch=batch)

    def own(self, *arguments: object) -> Target:
        """A server over the bundle's own engine."""
        return Target(self.bundle, *arguments)

    def body(self, tokens: int | None = None, **more: Any) -> dict[str, Any]:
        """A completion that takes a pass for each of `tokens`."""
        tokens = tokens or self.size.tokens
        same = {"decoder": "fixed", "block_length": 8, "cache": "prefix", "schedule": "none", "temperature": 0.0}
        return {"prompt": PROMPT, "max_tokens": tokens, **same, **more}

    def say(self, message: str) -> None:
        """Progress."""
        measure.say(message)


def finding(goal: str, met: bool | None, **figures: Any) -> dict[str, Any]:
    """What a scenario found: what was asked for, whether it was met (None: nothing was), and the figures."""
    return {"goal": goal, "met": met, **figures}
