"""`decide`: draws tokens from logits and computes the confidence of each row, on the device of the logits.

    token_ids, odds_against, negative_entropy, margin = decide(logits, uniform, temperature, top_k, top_p, banned,
                                                               tempers=contract.tempers_confidence)

The exporter traces it beside the step, and the eager engine runs it; greedy decoding does not need it. Symbols as in
`StepContract`. The functions use only operators that ONNX Runtime's CUDA provider and TensorRT have: no full sort, no
cumulative sum over a vocabulary, no search for a value.
"""

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor

_LEAST = -104.0  # exp of anything smaller is 0 in float32
_RANKED = 64  # tokens that are ranked; few filters keep more, and then the threshold is found by bisection
_TRIALS = 32  # bisections until a threshold is as exact as float32
_TINY = 1e-10  # Dream adds it to a probability before it takes the logarithm


_State = tuple[Tensor, ...]


def decide(
    logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, banned: Tensor, *, tempers: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decide every row of logits [B, R, V]; `runtime.engines.step` describes the other inputs and the outputs.

    Args:
        logits, uniform, temperature, top_k, top_p, banned: `contract.decide_inputs()`.
        tempers: `contract.tempers_confidence`.

    Returns:
        token_ids int64 [B, R], then odds_against, negative_entropy and margin, float32 [B, R].
    """
    draws = temperature > 0
    shapes = draws | (top_k > 0) | (top_p < 1)
    heat, draws, shapes = (
        part[:, None, None] for part in (torch.where(draws, temperature, 1.0), draws, shapes & tempers)
    )
    ban = torch.full_like(uniform, -1, dtype=torch.int64)[..., None].maximum(banned[:, None, None])
    place, kept = ban.clamp(min=0), logits.gather(-1, ban.clamp(min=0))
    lost = torch.where(ban >= 0, kept, -torch.inf)
    allowed = logits.scatter(-1, place, torch.where(ban >= 0, -torch.inf, kept))
    likeliest = argmax(allowed)
    best = allowed.gather(-1, likeliest)

    # Confidence under the model's own distribution includes the banned token (`lost`), which cannot be chosen
    lost = torch.where(shapes, -torch.inf, lost)
    top = torch.maximum(best, lost)
    if tempers:
        scores = (allowed - top) / heat
        powers = drawn_from = _filtered(scores, top_k, top_p)
    else:
        powers = (allowed - top).exp()
        drawn_from = _filtered((allowed - best) / heat, top_k, top_p)
    token = torch.where(draws, _draw(drawn_from, uniform[..., None], likeliest), likeliest)
    odds, entropy, margin = _sureness(powers, (lost - top).exp(), likeliest, token)
    return token.squeeze(-1), odds.squeeze(-1), entropy.squeeze(-1), margin.squeeze(-1)


def argmax(rows: Tensor) -> Tensor:
    """The likeliest token of each row [B, R, V], the lower id of equal ones, as [B, R, 1].

    It takes the maximum of each part first, since a maximum costs less than an argmax.
    """
    parts = _parts(rows)
    part = parts.amax(dim=-1).argmax(dim=-1, keepdim=True)
    return part * parts.shape[-1] + _part(parts, part).argmax(dim=-1, keepdim=True)


def _draw(powers: Tensor, uniform: Tensor, otherwise: Tensor) -> Tensor:
    """Draw a token for each row of `powers` [B, R, V] by inverting the cumulative sum at `uniform` [B, R, 1]."""
    parts = _parts(powers)
    sums = parts.sum(dim=-1)
    heights = sums.cumsum(dim=-1)
    height = uniform * heights[..., -1:]
    part = (heights <= height).sum(dim=-1, keepdim=True).clamp(max=sums.shape[-1] - 1)
    inside = _part(parts, part)
    height = height - (heights.gather(-1, part) - sums.gather(-1, part))
    place = (inside.cumsum(dim=-1) <= height).sum(dim=-1, keepdim=True).clamp(max=inside.shape[-1] - 1)
    # By rounding, the place may be past the last token with a probability
    return torch.where(inside.gather(-1, place) > 0, part * inside.shape[-1] + place, otherwise)


def _sureness(powers: Tensor, lost: Tensor, likeliest: Tensor, token: Tensor) -> _State:
    """Odds against `token`, negative entropy, and margin minus 1 of each row, [B, R, 1] each.

    `powers` [B, R, V] are probabilities divided by the largest one, and `lost` [B, R, 1] is the same for one token
    more. The probability of all but the likeliest token is summed without it, so that nearly certain rows keep their
    order.
    """
    first, chosen = powers.gather(-1, likeliest), powers.gather(-1, token)
    others = powers.scatter(-1, likeliest, torch.zeros_like(first))
    rest = others.sum(dim=-1, keepdim=True)
    total = first + lost + rest
    odds = (rest + lost + torch.where(token == likeliest, 0.0, first - chosen)) / chosen
    tiny, shares = torch.full_like(total, _TINY), others / total  # the exporter rounds so small a constant to 0
    entropy = (shares * (shares + tiny).log()).sum(dim=-1, keepdim=True)
    for one, other in ((first, lost), (lost, first)):
        entropy = entropy + one / total * _log(one / total, (rest + other) / total, tiny)
    less = torch.minimum(first, lost)
    second = torch.maximum(others.amax(dim=-1, keepdim=True), less)
    return odds, entropy, -(rest + less + second) / total


def _log(share: Tensor, open_share: Tensor, tiny: Tensor) -> Tensor:
    """log(share + tiny), computed from `open_share` = 1 - share if that is small, since ONNX has no log1p."""
    off = tiny - open_share
    arc = off / (2 + off)  # log(1 + off) = 2 atanh(off / (2 + off))
    square = arc * arc
    near = 2 * arc * (1 + square * (1 / 3 + square * (1 / 5 + square / 7)))
    return torch.where(off > -0.2, near, (share + tiny).log())


def _filtered(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """exp of `scores` [B, R, V], but 0 for tokens that either filter removes.

    The threshold is the score of the last token that the filters keep. It is read from the ranking of the likeliest
    tokens. If the filters keep more than were ranked, bisection narrows the range between `low` and the last ranked
    score until it holds one token. Neither is done if no row has a filter.
    """
    powers, vocabulary = scores.exp(), scores.shape[-1]
    counts, masses = (top_k > 0) & (top_k < vocabulary), top_p < 1
    count = torch.where(counts, top_k, vocabulary + 1)[:, None, None].float()
    mass = torch.where(masses, top_p, 2.0)[:, None, None] * powers.sum(dim=-1, keepdim=True)
    filters = (counts | masses)[:, None, None] & torch.ones_like(mass, dtype=torch.bool)
    inputs = (scores, count, mass, filters)
    low, high, within = (
        torch.cond(filters.any(), _rank, _keep_all, inputs)
        if torch.compiler.is_exporting()
        else (_rank if filters.any() else _keep_all)(*inputs)
    )

    def halve(trial: Tensor, low: Tensor, high: Tensor, within: Tensor, above: Tensor) -> _State:
        middle = (low + high) / 2
        left = (scores >= middle).float()
        number = left.sum(dim=-1, keepdim=True)
        enough = (number >= count) | ((left * powers).sum(dim=-1, keepdim=True) >= mass)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        return trial + 1, low, high, torch.where(enough, number, within), torch.where(enough, above, number)

    def open_yet(trial: Tensor, low: Tensor, high: Tensor, within: Tensor, above: Tensor) -> Tensor:
        return (trial < _TRIALS) & (within - above > 1).any()

    start = torch.zeros((), dtype=torch.int64, device=scores.device)
    low = _while(open_yet, halve, (start, low, high, within, torch.zeros_like(within)))[1]
    return powers * (scores >= low).float()


def _rank(scores: Tensor, count: Tensor, mass: Tensor, filters: Tensor) -> _State:
    """Lower and upper bound of each row's threshold, and the number of tokens above the lower one.

    Where the ranking holds the threshold, the bounds are equal and the number is 0.
    """
    ranked = scores.topk(min(_RANKED, scores.shape[-1])).values
    ranks = torch.arange(1.0, ranked.shape[-1] + 1, device=scores.device)
    short = ((ranks < count) & (ranked.exp().cumsum(dim=-1) < mass)).float().sum(dim=-1, keepdim=True)
    found = ranked.gather(-1, short.long().clamp(max=ranked.shape[-1] - 1))
    beyond = filters & (short >= ranked.shape[-1])
    low = torch.where(filters, torch.where(beyond, _LEAST, found), -torch.inf)
    return low, found, torch.where(beyond, float(scores.shape[-1]), 0.0)


def _keep_all(scores: Tensor, count: Tensor, mass: Tensor, filters: Tensor) -> _State:
    """The result of `_rank` if no row has a filter."""
    return torch.full_like(mass, -torch.inf), torch.zeros_like(mass), torch.zeros_like(mass)


def _while(going: Callable[..., Tensor], body: Callable[..., _State], state: _State) -> _State:
    """Apply `body` to `state` while `going` is true; in a traced graph this is a loop too."""
    if torch.compiler.is_exporting():
        loop: Callable[..., _State] = torch.while_loop
        return loop(going, body, state)
    while going(*state):
        state = body(*state)
    return state


def _parts(rows: Tensor) -> Tensor:
    """Rows [..., V] split into equal parts [..., parts, size], with `parts` near `size`."""
    size = max(size for size in range(1, isqrt(rows.shape[-1]) + 1) if rows.shape[-1] % size == 0)
    return rows.reshape(*rows.shape[:-1], -1, size)


def _part(parts: Tensor, part: Tensor) -> Tensor:
    """The parts [..., size] at the indices `part` [..., 1]."""
    return parts.gather(-2, part[..., None].expand(*part.shape, parts.shape[-1])).squeeze(-2)
