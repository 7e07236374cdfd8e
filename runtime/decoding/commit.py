"""Commit rules: how many of a block's ranked masks are committed in this step.

    count = commit_count(options, confidence, ranked, step)

Masks are ranked by score, best first; ties go to the lower position. Every rule commits at least one.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.options import GenerationOptions


def commit_count(
    options: GenerationOptions, confidence: NDArray[np.float64], ranked: NDArray[np.int64], step: int
) -> int:
    """Number of masks to commit, at least 1.

    Args:
        options: name the rule and its parameter.
        confidence: [R], the confidences of the masks left in the block.
        ranked: int64 [R], indices into `confidence`, best first.
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
    """Block length / steps per block, the remainder going to the first steps (LLaDA); or the counts of `_by_noise`."""
    if options.pace == "noise":
        counts = _by_noise(options.block_length, options.steps_per_block)
        return counts[min(step, len(counts) - 1)]
    base, remainder = divmod(options.block_length, options.steps_per_block)
    return base + (step < remainder)


@lru_cache
def _by_noise(masks: int, steps: int) -> tuple[int, ...]:
    """Counts of Dream's schedule, whose noise falls from 1 to 0.001 over all steps.

    A step commits the same share of the masks left as it lowers the noise, rounded down in float32 as in Dream's code;
    the last step commits the rest. Steps that would commit nothing are left out, as the step after them would compute
    the same.
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
