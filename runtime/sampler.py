"""`choose`: from one step's outputs to a token, a score and a confidence for every mask.

    choice = choose(outputs, options, generators, tempered=contract.tempers_confidence)

Greedy needs only what the graph computed. Temperature draws by Gumbel-max from the filtered distribution
(LLaDA, arXiv 2502.09992). What the confidence of a drawn token is differs between the authors: in LLaDA's code
its probability in the model's own distribution, in that of Dream, SDAR and Fast-dLLM v2 in the one it is drawn from.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.engine import StepOutputs
from dpad.runtime.errors import EngineError
from dpad.runtime.options import GenerationOptions

_LIKELY = 1024  # tokens that hold most of the probability in most rows
_BROKEN = "the engine produced NaN or infinite logits; check the weights, or use a wider dtype (bfloat16, float32)"


class Choice(NamedTuple):
    """A proposal for each decoded row; all [B, R]. Higher scores are committed first."""

    tokens: NDArray[np.int64]
    scores: NDArray[np.float64]
    confidence: NDArray[np.float64]


def choose(
    outputs: StepOutputs,
    options: GenerationOptions,
    generators: list[np.random.Generator],
    banned: int | None = None,
    *,
    tempered: bool = False,
) -> Choice:
    """Propose a token for every decoded row.

    Args:
        outputs: of one step; logits [B, R, V] where `options.needs_logits` or `banned`.
        options: temperature, filters and order.
        generators: one a batch row, used only above temperature 0.
        banned: a token id never to propose.
        tempered: whether confidence and order are of the distribution that tokens are drawn from, with its
            temperature and filters, and not of the model's own.
    """
    if banned is None and not options.needs_logits:
        confidence = np.reciprocal(np.add(outputs.odds_against, 1.0, dtype=np.float64))
        return _checked(Choice(outputs.token_ids, confidence, confidence))
    if outputs.logits is None:
        raise EngineError("the engine gave no logits though they were asked for")
    logits = outputs.logits.astype(np.float64)
    if not (logits < np.inf).all():  # NaN is not below anything
        raise EngineError(_BROKEN)
    own = logits if banned is None else logits.copy()
    if banned is not None:
        logits[..., banned] = -np.inf
    if options.shapes:
        logits = _shaped(logits, options)
    if options.temperature > 0:
        noise = np.stack([rng.gumbel(size=logits.shape[1:]) for rng in generators])
        tokens = np.asarray((logits + noise).argmax(axis=-1))
    else:
        tokens = logits.argmax(axis=-1)
    probabilities = _softmax(logits if tempered and options.shapes else own)
    confidence = np.take_along_axis(probabilities, tokens[..., None], axis=-1)[..., 0]
    return _checked(Choice(tokens, _score(options.decoder, probabilities, confidence), confidence))


def _score(decoder: str, probabilities: NDArray[np.float64], confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """The order of commitment: [B, R]."""
    if decoder == "entropy":  # Dream's: least entropy first
        return np.asarray((probabilities * np.log(probabilities + 1e-10)).sum(axis=-1))
    if decoder == "margin":  # Dream's topk_margin: clearest winner first
        best = np.partition(probabilities, -2, axis=-1)
        return np.asarray(best[..., -1] - best[..., -2])
    return confidence


def _shaped(logits: NDArray[np.float64], options: GenerationOptions) -> NDArray[np.float64]:
    """Tempered logits [B, R, V], -inf where `top_k` or `top_p` of the whole row rules a token out (Dream)."""
    tempered = logits / options.temperature if options.temperature > 0 else logits
    least = np.full((*tempered.shape[:-1], 1), -np.inf)
    if options.top_k is not None and options.top_k < tempered.shape[-1]:
        least = np.partition(tempered, -options.top_k, axis=-1)[..., -options.top_k, None]
    if options.top_p is not None:
        least = np.maximum(least, _nucleus(tempered, options.top_p))
    return np.where(tempered < least, -np.inf, tempered)


def _nucleus(logits: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """The least logit [B, R, 1] of the smallest set of tokens whose probability reaches `top_p`; ties are in."""
    total, size = np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True), logits.shape[-1]
    for count in (min(_LIKELY, size), size):  # sorting a whole vocabulary takes ten times as long
        best = -np.sort(-np.partition(logits, size - count, axis=-1)[..., size - count :], axis=-1)
        reached = np.exp(best - best[..., :1]).cumsum(axis=-1) >= top_p * total
        if reached[..., -1].all():
            break
    last = np.where(reached[..., -1:], reached.argmax(axis=-1, keepdims=True), count - 1)  # unless rounding falls short
    return np.take_along_axis(best, last, axis=-1)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _checked(choice: Choice) -> Choice:
    if not np.minimum.reduce(choice.confidence, axis=None, initial=1.0) >= 0:  # NaN is neither
        raise EngineError(_BROKEN)
    return choice
