"""`Part`: what one sequence asks of a pass, and `Answer`, what the pass decided for it.

    part = sequence.part()
    part.view.queries, part.rows
    event = sequence.take(answer)

Whatever has parts and takes answers can be scheduled: sequences that are decoded, and texts that are scored.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class View:
    """What takes part in a pass. One object serves all passes that look the same: what is padded once serves them too.

    Attributes:
        queries: int64 [Q], canvas positions that take part.
        cached: int64 [K], pool slots that they attend.
        written: int64 [Q], the slot that keeps each new row, -1 for none; None if no row is kept.
        refresh: whether it begins a block.
    """

    queries: NDArray[np.int64]
    cached: NDArray[np.int64]
    written: NDArray[np.int64] | None
    refresh: bool


class Draw(NamedTuple):
    """`Sampling` of one sequence; `uniform` float32 [R]."""

    uniform: NDArray[np.float32]
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    banned: int = -1


class Part(NamedTuple):
    """`canvas` [N]; `rows` int64 [R], the query rows to predict from; what is asked beyond the likeliest token."""

    view: View
    canvas: NDArray[np.int64]
    rows: NDArray[np.int64]
    draw: Draw | None = None
    want_logits: bool = False


class Answer(NamedTuple):
    """What a pass decided for one sequence, [R] each, in the order of its rows; `seconds` inside the engine.

    With a draw, tokens and odds are those of the draw, and entropy and margin are there; else the likeliest token's.
    """

    token_ids: NDArray[np.int64]
    odds_against: NDArray[np.float32]
    negative_entropy: NDArray[np.float32] | None
    margin: NDArray[np.float32] | None
    logits: NDArray[np.float32] | None
    seconds: float


class Scheduled(Protocol):
    """What a `Scheduler` runs.

    Attributes:
        need: pool slots that it holds at most.
        finished: whether its last pass has been taken.
        waited: seconds that it has waited for its turns, in the queue and while passes ran without it.
        deadline: when it ends with what it has, by `time.perf_counter`.
    """

    need: int
    finished: bool = False
    waited: float = 0.0
    deadline: float = inf

    def join(self, slots: NDArray[np.int64]) -> None:
        """Begin, with `slots` [need] of its own; raises `InvalidRequest` if it cannot."""

    def part(self) -> Part:
        """Of the next pass. It is asked for once before each `take`."""

    def take(self, answer: Answer) -> Any:
        """Take what a pass decided; gives the event that its caller is told, None for none."""

    def expire(self) -> Any:
        """End at the deadline, between two passes or before the first; gives the last event, None for none."""
