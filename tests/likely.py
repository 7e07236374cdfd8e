"""`decided`: the reference of `decide`, which decides one row of logits in float64 and with a sort."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Decided(NamedTuple):
    """A decision. `margin` is the margin minus 1, as in `Decisions`; `kept` are the tokens that pass the filters."""

    token: int
    odds: float
    negative_entropy: float
    margin: float
    kept: NDArray[np.int64]


def decided(
    logits: NDArray[np.float32],
    uniform: float = 0.0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    banned: int = -1,
    *,
    tempers: bool,
) -> Decided:
    """Decide one row [V]; `uniform` is the random number of the draw.

    The defaults mean: no temperature, no top_k, no top_p, no banned token.
    """
    allowed = logits.astype(np.float64)
    if banned >= 0:
        allowed[banned] = -np.inf
    powers = filtered(np.exp((allowed - allowed.max()) / (temperature or 1.0)), top_k, top_p)
    token, heights = int(allowed.argmax()), powers.cumsum()
    if temperature > 0:
        token = int(np.searchsorted(heights, uniform * heights[-1], side="right"))
    kept = np.flatnonzero(powers)
    if not tempers or (temperature == 0 and top_k == 0 and top_p == 1):
        powers = np.exp(logits.astype(np.float64) - logits.max())
    first = int(powers.argmax())
    rest = np.delete(powers, first)
    shares = powers / powers.sum()
    with np.errstate(divide="ignore"):
        odds = np.delete(powers, token).sum() / powers[token]
    # log(share + 1e-10) of the likeliest token is computed from 1 - share, since even float64 would round it
    logs = np.log(shares + 1e-10)
    logs[first] = np.log1p(1e-10 - rest.sum() / powers.sum())
    gap = (rest.sum() + rest.max(initial=0.0)) / powers.sum()
    return Decided(token, float(odds), float((shares * logs).sum()), -float(gap), kept)


def filtered(powers: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.float64]:
    """`powers` with 0 for tokens that Dream's code removes: each filter sees the whole row, and edge ties stay."""
    ranked, least = np.sort(powers)[::-1], 0.0
    if 0 < top_k < len(powers):
        least = ranked[top_k - 1]
    if top_p < 1:
        reached = np.searchsorted(ranked.cumsum(), top_p * powers.sum())
        least = max(least, ranked[min(reached, len(ranked) - 1)])
    return np.where(powers >= least, powers, 0.0)
