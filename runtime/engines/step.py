"""What goes into one denoising step and what comes out, on the host. Axes as in `StepContract`.

inputs = StepInputs(canvas, gather_indices, cache_indices, decode_rows, write_slots)
outputs = engine.step(inputs)
outputs.token_ids, outputs.odds_against
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """What decisions beyond the likeliest token depend on, a sequence each. Axes as in `StepContract`.

    Attributes:
        uniform: float32 [B, R], in [0, 1): the draw of each decoded row.
        temperature: float32 [B]; 0 takes the likeliest token instead of a drawn one.
        top_k: int64 [B], the likeliest tokens that are left; 0: all. A tie with the last is in.
        top_p: float32 [B], the probability that the tokens which are left reach together; 1: all.
        banned: int64 [B], a token that is never chosen; -1: none.
    """

    uniform: NDArray[np.float32]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    banned: NDArray[np.int64]


@dataclass(frozen=True)
class Decisions:
    """What `Sampling` asked for, [B, R] each.

    Odds, entropy and margin are of the distribution in which the family measures confidence: that of the draw, with its
    temperature and filters, where `contract.tempers_confidence` and a sequence has any, else the model's own.

    Attributes:
        token_ids: int64, drawn, or the likeliest that is not banned.
        odds_against: float32, (1 - p) / p of that token.
        negative_entropy: float32, 0 for the surest row.
        margin: float32, what the likeliest token's probability has more than the second's, less 1: 0 for the surest
            row, so that near-certain ones keep their order.
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
        decode_rows: int64 [B, R], rows of Q whose prediction is wanted.
        write_slots: int64 [B, Q], pool slots to which the new rows go after the step; -1: a row is not kept. None: none
            is. No slot may be named twice.
        sampling: also decide by these.
        want_logits: also return the logits.
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
    """Outputs of one step, on the host: [B, R] each, `decisions` and logits [B, R, V] if they were asked for."""

    token_ids: NDArray[np.int64]
    odds_against: NDArray[np.float32]
    decisions: Decisions | None = None
    logits: NDArray[np.float32] | None = None
