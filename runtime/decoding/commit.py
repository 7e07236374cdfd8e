"""Commit rules: how many of the ranked masks of a block are decided in this step.

    count = commit_count(options, ranked, masked, step)

Rows of the batch are ranked by score, best first, ties to the lower position. Each rule
answers with a count a row, and never with less than one while there are masks.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.options import GenerationOptions


def commit_count(
    options: GenerationOptions, ranked: Callable[[], NDArray[np.float64]], masked: NDArray[np.int64], step: int
) -> NDArray[np.int64]:
    """Number of masks to commit in each row.

    Args:
        options: names the rule and its parameter.
        ranked: gives [B, R] confidences, each row best first, -inf where a row has no mask;
            called only by the rules that look at them.
        masked: [B] masks left in each row's block.
        step: index of this step within the block.

    Returns:
        [B], each at most `masked`.
    """
    if options.decoder == "threshold":
        return np.asarray(np.minimum(np.maximum((ranked() >= options.threshold).sum(axis=1), 1), masked))
    if options.decoder == "factor":
        return np.asarray(np.minimum(np.maximum(_factor(ranked(), options.factor), 1), masked))
    return np.asarray(np.minimum(max(_planned(options, step), 1), masked))


def _planned(options: GenerationOptions, step: int) -> int:
    """Block length over steps a block, the remainder spread over the first steps (LLaDA), or as `_by_noise`."""
    if options.pace == "noise":
        counts = _by_noise(options.block_length, options.steps_per_block)
        return counts[min(step, len(counts) - 1)]
    base, remainder = divmod(options.block_length, options.steps_per_block)
    return base + (step < remainder)


@lru_cache
def _by_noise(masks: int, steps: int) -> tuple[int, ...]:
    """Dream's counts: of the masks left, the share by which a step lowers the noise, from 1 to 0.001 over all of them.

    They are rounded down, in float32 as there, and the last step takes the rest. Steps that would decide nothing are
    left out: the one after computes the same.
    """
    counts, left = [], masks
    for before, after in pairwise(np.linspace(1, 1e-3, steps + 1, dtype=np.float32)[:-1]):
        counts.append(int(np.float32(left) * (1 - after / before)))
        left -= counts[-1]
    return tuple(count for count in (*counts, left) if count)


def _factor(ranked: NDArray[np.float64], factor: float) -> NDArray[np.int64]:
    """Fast-dLLM (arXiv 2505.22618): accept the top n while (n + 1) · (1 - p_n) < factor."""
    rank = np.arange(1, ranked.shape[1] + 1)
    accepted = (rank + 1) * (1.0 - ranked) < factor
    return np.asarray(np.logical_and.accumulate(accepted, axis=1).sum(axis=1))
