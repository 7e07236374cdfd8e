"""Commit rules: how many of the ranked masks of a block are decided in this step.

    count = commit_count(options, confidence, ranked, step)

Masks are ranked by score, best first, ties to the lower position. No rule answers with less than one.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.options import GenerationOptions


def commit_count(
    options: GenerationOptions, confidence: NDArray[np.float64], ranked: NDArray[np.int64], step: int
) -> int:
    """Number of masks to commit, 1 at least.

    Args:
        options: names the rule and its parameter.
        confidence: [R], of the masks left in the block.
        ranked: int64 [R], their order, best first.
        step: index of this step within the block.
    """
    if options.decoder == "threshold":
        count = int(np.count_nonzero(confidence >= options.threshold))
    elif options.decoder == "factor":
        count = _factor(confidence[ranked], options.factor)
    else:
        count = _planned(options, step)
    return min(max(count, 1), len(ranked))


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


def _factor(ranked: NDArray[np.float64], factor: float) -> int:
    """Fast-dLLM (arXiv 2505.22618): accept the top n while (n + 1) · (1 - p_n) < factor."""
    accepted = (np.arange(2, len(ranked) + 2) * (1.0 - ranked)) < factor
    return len(ranked) if accepted.all() else int(accepted.argmin())
