"""Inputs and outputs of one denoising step, on the host. Axes as in `StepContract`.

inputs = StepInputs(canvas, gather_indices, cache_indices, decode_rows, write_slots)
outputs = engine.step(inputs)
outputs.token_ids, outputs.odds_against
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of each sequence, the inputs of the program `decide`. Axes as in `StepContract`.

    Attributes:
        uniform: float32 [B, R], a uniform number in [0, 1) for the draw of each decoded row.
        temperature: float32 [B]; 0 takes the likeliest token instead of drawing one.
        top_k: int64 [B], number of likeliest tokens that may be drawn, ties with the last included; 0 is all.
        top_p: float32 [B]; the likeliest tokens that together reach this probability may be drawn; 1 is all.
        banned: int64 [B], a token that is never chosen; -1 is none.
    """

    uniform: NDArray[np.float32]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    banned: NDArray[np.int64]


@dataclass(frozen=True)
class Decisions:
    """Outputs of the program `decide`, [B, R] each.

    Odds, entropy and margin refer to the distribution in which the family measures confidence: with
    `contract.tempers_confidence` the tempered and filtered one, otherwise the model's own.

    Attributes:
        token_ids: int64, the drawn token, or the likeliest that is not banned.
        odds_against: float32, (1 - p) / p of that token.
        negative_entropy: float32, at most 0; 0 is certain.
        margin: float32, p1 - p2 - 1 of the two most probable tokens, at most 0; 0 is certain. Subtracting 1 keeps the
            order of near-certain rows, which float32 would round to 1.
    """

    token_ids: NDArray[np.int64]
    odds_against: NDArray[np.float32]
    negative_entropy: NDArray[np.float32]
    margin: NDArray[np.float32]


@dataclass(frozen=True)
class StepInputs:
    """Inputs of one step, on the host. Axes as in `StepContract`.

    Attributes:
        canvas: int64 [B, N].
        gather_indices: int64 [B, Q], positions that take part; -1 pads.
        cache_indices: int64 [B, K], pool slots that every query of the sequence may attend; -1 pads.
        decode_rows: int64 [B, R], indices into Q of the rows to predict from.
        write_slots: int64 [B, Q], the pool slot to which each new row is written after the step; -1 for rows that are
            not kept, None if no row is. No slot may occur twice.
        sampling: if given, `decide` runs with these parameters.
        want_logits: whether to return the logits.
    """

    canvas: NDArray[np.int64]
    gather_indices: NDArray[np.int64]
    cache_indices: NDArray[np.int64]
    decode_rows: NDArray[np.int64]
    write_slots: NDArray[np.int64] | None = None
    sampling: Sampling | None = None
    want_logits: bool = False


@dataclass(frozen=True)
class StepOutputs:
    """Outputs of one step, on the host: [B, R] each; `decisions` and `logits` [B, R, V] only if requested."""

    token_ids: NDArray[np.int64]
    odds_against: NDArray[np.float32]
    decisions: Decisions | None = None
    logits: NDArray[np.float32] | None = None
