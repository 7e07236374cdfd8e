"""`choose`: from one step's outputs to a token, a score and a confidence for every mask.

    choice = choose(outputs, options, generators, tempered=contract.tempers_confidence)

Greedy needs only what the graph computed. Temperature draws from the tempered and filtered distribution, as LLaDA's
Gumbel-max does (arXiv 2502.09992), but with one number a row instead of one a token. What the confidence of a drawn
token is differs between the authors: in LLaDA's code its probability in the model's own distribution, in that of
Dream, SDAR and Fast-dLLM v2 in the one it is drawn from.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.likely import Likely
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.engines.base import StepOutputs
from dpad.runtime.errors import EngineError

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
    best_probability = 1.0 / (1.0 + outputs.odds_against.astype(np.float64))
    tokens, scores, confidence = (
        outputs.token_ids.copy(),
        np.empty_like(best_probability),
        np.empty_like(best_probability),
    )
    for row, column in np.ndindex(tokens.shape):
        rng = generators[row] if options.temperature > 0 else None
        tokens[row, column], scores[row, column], confidence[row, column] = _proposal(
            outputs.logits[row, column], float(best_probability[row, column]), options, rng, banned, tempered
        )
    return _checked(Choice(tokens, scores, confidence))


def _proposal(
    logits: NDArray[np.float32],
    best_probability: float,
    options: GenerationOptions,
    rng: np.random.Generator | None,
    banned: int | None,
    tempered: bool,
) -> tuple[int, float, float]:
    """Token, score and confidence of one row [V], whose likeliest token has `best_probability`."""
    allowed = logits
    if banned is not None:
        allowed = logits.copy()
        allowed[banned] = -np.inf
    likely, token = None, int(allowed.argmax())  # of NaN, if there is one
    if not np.isfinite(allowed[token]):
        raise EngineError(_BROKEN)
    if options.shapes:
        likely = Likely.of(allowed, options.temperature or 1.0).filtered(options.top_k, options.top_p)
        token = token if rng is None else likely.draw(rng)
    if likely is not None and tempered:
        confidence = likely.probability(token)
    else:
        likely, confidence = None, best_probability * float(np.exp(logits[token] - logits.max()))
    if options.decoder == "entropy":
        return token, (likely or Likely.of(logits)).negative_entropy(), confidence
    if options.decoder == "margin":
        return token, (likely or Likely.of(logits)).margin(), confidence
    return token, confidence, confidence


def _checked(choice: Choice) -> Choice:
    if not np.minimum.reduce(choice.confidence, axis=None, initial=1.0) >= 0:  # NaN is neither
        raise EngineError(_BROKEN)
    return choice
