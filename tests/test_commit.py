"""Compares commit rules with simple versions that handle one mask at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import noise_budget

from dpad.runtime.decoding.commit import commit_count
from dpad.runtime.decoding.options import DECODERS, GenerationOptions

BLOCK = 12


def count_of(options: GenerationOptions, confidences: list[float], step: int) -> int:
    """The number of commits by the rule for masks with these confidences, in any order."""
    confidence = np.array(confidences)
    return commit_count(options, confidence, np.argsort(-confidence, kind="stable"), step)


def naive(options: GenerationOptions, confidences: list[float], step: int) -> int:
    """The expected number of commits for masks with these confidences, best first."""
    if options.decoder == "threshold":
        return max(1, sum(c >= options.threshold for c in confidences))
    if options.decoder == "factor":
        count = 0
        for n, confidence in enumerate(confidences, start=1):
            if not (n + 1) * (1 - confidence) < options.factor:
                break
            count = n
        return max(1, count)
    steps = (options.steps or options.gen_length) // (options.gen_length // options.block_length)
    planned = [BLOCK // steps + (1 if s < BLOCK % steps else 0) for s in range(steps)]
    wanted = planned[step] if step < steps else 1
    return min(max(1, wanted), len(confidences))


@given(
    confidences=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=BLOCK),
    decoder=st.sampled_from(DECODERS),
    threshold=st.floats(0, 1),
    factor=st.floats(0.01, 4),
    steps=st.sampled_from([None, 2, 4, 10, 14, 24, 48]),
    step=st.integers(0, 30),
)
def test_counts(
    confidences: list[float], decoder: str, threshold: float, factor: float, steps: int | None, step: int
) -> None:
    """Fails if a rule commits too many or too few tokens, or none."""
    options = GenerationOptions(
        gen_length=2 * BLOCK,
        block_length=BLOCK,
        decoder=decoder,
        threshold=threshold,
        factor=factor,
        steps=steps,
    )
    count = count_of(options, confidences, step)
    if decoder in ("fixed", "entropy", "margin") and step >= options.steps_per_block:
        return  # after the planned steps only progress is promised; see the next test
    assert count == naive(options, sorted(confidences, reverse=True), step)


@given(masked=st.integers(1, BLOCK), steps=st.sampled_from([2, 4, 10, 24]), step=st.integers(0, 40))
def test_past_the_plan_there_is_progress(masked: int, steps: int, step: int) -> None:
    """Fails if a block that still has masks after its planned steps stops, or commits more than its masks."""
    options = GenerationOptions(gen_length=2 * BLOCK, block_length=BLOCK, decoder="fixed", steps=steps)
    assert 1 <= count_of(options, [0.5] * masked, step) <= masked


@pytest.mark.parametrize(
    "steps,plan", [(8, [3, 3, 3, 3]), (10, [3, 3, 2, 2, 2]), (14, [2, 2, 2, 2, 2, 1, 1]), (2, [12])]
)
def test_the_published_plan(steps: int, plan: list[int]) -> None:
    """Fails if the remainder does not go to the first steps."""
    options = GenerationOptions(gen_length=2 * BLOCK, block_length=BLOCK, decoder="fixed", steps=steps)
    left, counts = BLOCK, []
    while left:
        counts.append(count_of(options, [0.5] * left, len(counts)))
        left -= counts[-1]
    assert counts == plan


@given(masks=st.integers(1, 256), steps=st.integers(1, 256))
def test_dreams_pace(masks: int, steps: int) -> None:
    """Fails if steps commit other numbers than Dream's steps, without those that commit nothing."""
    options = GenerationOptions(masks, masks, "fixed", steps=steps, pace="noise")
    left, counts = masks, []
    while left:
        counts.append(count_of(options, [0.5] * left, len(counts)))
        left -= counts[-1]
    assert counts == [count for count in noise_budget(masks, steps) if count]


def test_threshold_is_inclusive_and_factor_is_not() -> None:
    """Fails if >= and > are exchanged at a limit."""
    for threshold, count in ((0.5, 2), (0.5000001, 1), (0.8, 1), (0.0, 3)):
        options = GenerationOptions(decoder="threshold", threshold=threshold)
        assert count_of(options, [0.25, 0.75, 0.5], 0) == count
    for factor, count in ((0.5, 1), (0.6, 1), (1.5, 1), (1.500001, 2), (3.0, 2), (3.1, 3)):
        options = GenerationOptions(decoder="factor", factor=factor)
        assert count_of(options, [0.25, 0.75, 0.5], 0) == count
