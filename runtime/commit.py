"""Commit rules: how many of the ranked masks of a block are decided in this step.

    count = commit_count(options, ranked, masked, step)

Rows of the batch are ranked by score, best first, ties to the lower position. Each rule
answers with a count a row, and never with less than one while there are masks.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.options import GenerationOptions


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
    return np.asarray(np.minimum(max(_fixed(options, step), 1), masked))


def _fixed(options: GenerationOptions, step: int) -> int:
    """Block length over steps a block, the remainder spread over the first steps (LLaDA)."""
    base, remainder = divmod(options.block_length, options.steps_per_block)
    return base + (step < remainder)


def _factor(ranked: NDArray[np.float64], factor: float) -> NDArray[np.int64]:
    """Fast-dLLM (arXiv 2505.22618): accept the top n while (n + 1) · (1 - p_n) < factor."""
    rank = np.arange(1, ranked.shape[1] + 1)
    accepted = (rank + 1) * (1.0 - ranked) < factor
    return np.asarray(np.logical_and.accumulate(accepted, axis=1).sum(axis=1))
