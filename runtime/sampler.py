"""`choose`: from one step's outputs to a token, a score and a confidence for every mask.

    choice = choose(outputs, options, contract, generators)

Greedy needs only what the graph computed. Temperature draws by Gumbel-max from the
filtered distribution (LLaDA, arXiv 2502.09992); the confidence stays the probability
under the model's own, untempered distribution, as in LLaDA's code.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.engine import StepOutputs
from dpad.runtime.errors import EngineError
from dpad.runtime.options import GenerationOptions

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
) -> Choice:
    """Propose a token for every decoded row.

    Args:
        outputs: of one step; logits [B, R, V] where `options.needs_logits` or `banned`.
        options: temperature, filters and order.
        generators: one a batch row, used only above temperature 0.
        banned: a token id never to propose.
    """
    if banned is None and not options.needs_logits:
        confidence = np.reciprocal(np.add(outputs.odds_against, 1.0, dtype=np.float64))
        return _checked(Choice(outputs.token_ids, confidence, confidence))
    if outputs.logits is None:
        raise EngineError("the engine gave no logits though they were asked for")
    logits = outputs.logits.astype(np.float64)
    if not (logits < np.inf).all():  # NaN is not below anything
        raise EngineError(_BROKEN)
    probabilities = _softmax(logits)
    if banned is not None:
        logits[..., banned] = -np.inf
    tokens = _draw(logits, options, generators) if options.temperature > 0 else logits.argmax(axis=-1)
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


def _draw(
    logits: NDArray[np.float64], options: GenerationOptions, generators: list[np.random.Generator]
) -> NDArray[np.int64]:
    """Gumbel-max over the filtered, tempered logits [B, R, V]; each batch row has its own generator."""
    tempered = logits / options.temperature
    if options.top_k is not None and options.top_k < tempered.shape[-1]:
        kth = np.partition(tempered, -options.top_k, axis=-1)[..., -options.top_k, None]
        tempered = np.where(tempered < kth, -np.inf, tempered)
    if options.top_p is not None:
        tempered = np.where(_outside_nucleus(tempered, options.top_p), -np.inf, tempered)
    noise = np.stack([rng.gumbel(size=tempered.shape[1:]) for rng in generators])
    return np.asarray((tempered + noise).argmax(axis=-1))


def _outside_nucleus(logits: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """True for tokens past the smallest set whose probability reaches `top_p`; the best is always in."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(_softmax(logits), order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    outside = np.empty(logits.shape, dtype=bool)
    np.put_along_axis(outside, order, before >= top_p, axis=-1)
    return outside


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _checked(choice: Choice) -> Choice:
    if not np.minimum.reduce(choice.confidence, axis=None, initial=1.0) >= 0:  # NaN is neither
        raise EngineError(_BROKEN)
    return choice
