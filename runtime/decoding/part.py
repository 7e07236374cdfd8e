"""`Part`: one sequence's inputs to a pass. `Answer`: what the pass decided for it.

    part = sequence.part()
    part.view.queries, part.rows
    event = sequence.take(answer)

A scheduler runs anything with these methods: sequences that are decoded, and texts that are scored.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class View:
    """The positions and slots of a sequence in a pass. Equal passes use one object, so that its padding is reused.

    Attributes:
        queries: int64 [Q], canvas positions that take part.
        cached: int64 [K], pool slots that they attend.
        written: int64 [Q], the slot that each new row is written to, -1 for none; None if no row is written.
        refresh: whether the pass begins a block.
    """

    queries: NDArray[np.int64]
    cached: NDArray[np.int64]
    written: NDArray[np.int64] | None
    refresh: bool


class Draw(NamedTuple):
    """The `Sampling` parameters of one sequence; `uniform` is float32 [R]."""

    uniform: NDArray[np.float32]
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    banned: int = -1


class Part(NamedTuple):
    """Inputs of one sequence to a pass.

    `canvas` is int64 [N] and `rows` int64 [R], the query rows to predict from. `draw` and `want_logits` request more
    than each row's likeliest token.
    """

    view: View
    canvas: NDArray[np.int64]
    rows: NDArray[np.int64]
    draw: Draw | None = None
    want_logits: bool = False


class Answer(NamedTuple):
    """What a pass decided for one sequence: arrays [R] in the order of its rows, logits [R, V].

    With a `Draw`, tokens and odds are those drawn, and entropy and margin are given. Without one, tokens and odds are
    those of the likeliest tokens. `seconds` is the time of the pass inside the engine.
    """

    token_ids: NDArray[np.int64]
    odds_against: NDArray[np.float32]
    negative_entropy: NDArray[np.float32] | None
    margin: NDArray[np.float32] | None
    logits: NDArray[np.float32] | None
    seconds: float


class Scheduled(Protocol):
    """A sequence that a `Scheduler` runs.

    Attributes:
        need: most pool slots that it holds at a time.
        finished: whether it has taken the answer of its last pass.
        waited: seconds that it has waited, in the queue and while passes ran without it.
        deadline: the `time.perf_counter` time at which it ends with the tokens it has.
    """

    need: int
    finished: bool = False
    waited: float = 0.0
    deadline: float = inf

    def join(self, slots: NDArray[np.int64]) -> None:
        """Begin, holding the pool slots `slots` [need]; raises `InvalidRequest` if it cannot."""

    def part(self) -> Part:
        """The part for the next pass; called once before each `take`."""

    def take(self, answer: Answer) -> Any:
        """Take what a pass decided; returns an event for the caller, or None."""

    def expire(self) -> Any:
        """End at the deadline, between two passes or before the first; returns the last event, or None."""
