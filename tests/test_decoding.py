"""Compares `generate` with the simple published decoder: same tokens, same passes, same order.

Every engine, cache mode, commit rule and suffix schedule of both families is compared with
`reference.py`, one sequence at a time; `test_batching.py` shows that a batch changes nothing.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import EOS, FAMILIES, MASK, VOCAB
from decoding import Decoded, run
from reference import Result, Rules, decode

from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import DECODERS, PLANNED, GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import Explicit, Full, Gaussian, SuffixSchedule, Uniform

GEN, BLOCK, SEED = 48, 16, 3
PROMPT = tuple(int(t) for t in np.random.default_rng(7).integers(2, MASK, 13))
EXPLICIT = ((0, 1, 5, 9, 20, 31), (0, 2, 7), ())

SCHEDULES: dict[str, SuffixSchedule] = {
    "full": Full(),
    "gaussian": Gaussian(k=3, scale=2, window=32),
    "uniform": Uniform(count=6, window=24),
    "explicit": Explicit(EXPLICIT),
}

each_engine = pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
each_family = pytest.mark.parametrize("family", FAMILIES)
each_cache = pytest.mark.parametrize("cache_mode", CACHES)


def options_for(decoder: str, cache_mode: str, schedule: SuffixSchedule, **changes: Any) -> GenerationOptions:
    """Options under which the random models commit several tokens in some steps."""
    values: dict[str, Any] = {
        "gen_length": GEN,
        "block_length": BLOCK,
        "decoder": decoder,
        "cache": cache_mode,
        "schedule": schedule,
        "threshold": 0.6,
        "factor": 1.5,
        "steps": 21,  # 7 per block: 16 masks in steps of 3, 3, 2, 2, ...
        "seed": SEED,
        "early_termination": False,
    }
    return GenerationOptions(**(values | changes))


def kept_positions(schedule: SuffixSchedule, prompt: int) -> list[list[int]]:
    """The canvas positions that `schedule` keeps after each block."""
    kept = []
    for block in range(GEN // BLOCK):
        behind = (block + 1) * BLOCK
        rng = np.random.default_rng((SEED, block, 0))
        distances = schedule.keep(block, GEN - behind, GEN, rng)
        kept.append([prompt + behind + int(d) for d in distances])
    return kept


@pytest.fixture(scope="session")
def reference_of(make_bundle: Callable[..., Any]) -> Callable[..., Result]:
    """The reference's result for (family, options, prompt, suffix, bundle), computed once."""

    @cache
    def model_of(family: str, **bundle: Any) -> Any:
        checkpoint = Checkpoint.open(make_bundle(family, **bundle))
        return load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)

    @cache
    def answer(
        family: str,
        options: GenerationOptions,
        prompt: tuple[int, ...] = PROMPT,
        suffix: tuple[int, ...] = (),
        eos: int = EOS,
        **bundle: Any,
    ) -> Result:
        rules = Rules(
            gen_length=options.gen_length,
            block_length=options.block_length,
            kept=kept_positions(options.schedule, len(prompt)),
            decoder=options.decoder,
            cache=options.cache,
            mask=MASK,
            eos=eos,
            shift=1 if family == "dream" else 0,
            steps=options.steps or options.gen_length,
            pace=options.pace,
            threshold=options.threshold,
            factor=options.factor,
            early_termination=options.early_termination,
        )
        return decode(model_of(family, **bundle), list(prompt), rules, list(suffix))

    return answer


def assert_same(ours: Decoded, theirs: Result) -> None:
    """Assert equal canvases and passes, and that each position was committed in the same pass."""
    assert ours.tokens == theirs.tokens
    assert ours.nfe == theirs.nfe
    passes = sorted(set(ours.committed.values()))
    assert {p: passes.index(when) + 1 for p, when in ours.committed.items()} == theirs.committed


@each_engine
@each_family
@each_cache
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_decodes_as_published(
    engine_of: Any, reference_of: Any, engine: str, family: str, cache_mode: str, decoder: str, schedule: str
) -> None:
    """Fails if queries, cached slots, kept positions, shift, ranking or counts differ in any mode."""
    options = options_for(decoder, cache_mode, SCHEDULES[schedule])
    theirs = reference_of(family, options)
    assert MASK not in theirs.tokens and theirs.nfe < GEN and theirs.most_at_once > 1
    [ours] = run(engine_of(engine, family), [Request(PROMPT)], options)
    assert_same(ours, theirs)


@each_engine
@each_cache
@pytest.mark.parametrize("decoder", PLANNED)
def test_dreams_pace(engine_of: Any, reference_of: Any, engine: str, cache_mode: str, decoder: str) -> None:
    """Fails if `pace="noise"` differs from Dream's sampler, or equals the even pace."""
    options = options_for(decoder, cache_mode, Full(), pace="noise")
    theirs = reference_of("dream", options)
    assert theirs.committed != reference_of("dream", options_for(decoder, cache_mode, Full())).committed
    [ours] = run(engine_of(engine, "dream"), [Request(PROMPT)], options)
    assert_same(ours, theirs)


@each_family
def test_the_modes_are_not_one_mode(reference_of: Any, family: str) -> None:
    """Fails if the reference gives the same result in all modes, so that agreement would prove nothing."""
    answers = [
        reference_of(family, options_for(decoder, mode, SCHEDULES[schedule])).tokens
        for decoder, mode, schedule in [
            ("threshold", "none", "full"),
            ("threshold", "prefix", "full"),
            ("threshold", "dual", "full"),
            ("threshold", "extend", "full"),
            ("threshold", "none", "gaussian"),
            ("threshold", "none", "explicit"),
            ("fixed", "none", "full"),
            ("entropy", "none", "full"),
            ("margin", "none", "full"),
        ]
    ]
    assert len({tuple(tokens) for tokens in answers}) >= 8


@each_engine
@each_family
@each_cache
@pytest.mark.parametrize("decoder", ["threshold", "fixed"])
def test_early_termination(
    engine_of: Any, reference_of: Any, engine: str, family: str, cache_mode: str, decoder: str
) -> None:
    """Fails if EOS does not end the text, truncates its block, or ends it before the block is complete."""
    free = reference_of(family, options_for(decoder, cache_mode, Full()))
    start = len(PROMPT)
    eos = next(t for t in free.tokens[start + 4 : start + BLOCK - 2])  # a token inside the first block
    options = options_for(decoder, cache_mode, Full(), early_termination=True, eos_token_ids=(eos,))
    theirs = reference_of(family, options, eos=eos)
    assert theirs.ended_early and theirs.nfe < free.nfe
    [ours] = run(engine_of(engine, family), [Request(PROMPT)], options)
    assert_same(ours, theirs)
    assert ours.tokens[start : start + BLOCK] == free.tokens[start : start + BLOCK]
    assert set(ours.tokens[start + BLOCK :]) == {eos}


@each_family
def test_an_early_end_is_filled_with_the_checkpoints_eos(engine_of: Any, family: str) -> None:
    """Fails if the canvas is filled with another EOS because generation_config.json lists it first."""
    engine, behind = engine_of("onnxruntime", family), len(PROMPT) + BLOCK
    [free] = run(engine, [Request(PROMPT)], options_for("fixed", "dual", Full()))
    end = free.tokens[len(PROMPT) + 4]
    options = options_for("fixed", "dual", Full(), early_termination=True, eos_token_ids=(end, EOS))
    [ours] = run(engine, [Request(PROMPT)], options)
    assert ours.tokens[:behind] == free.tokens[:behind] and set(ours.tokens[behind:]) == {EOS}


@each_engine
@each_family
@each_cache
def test_infill(engine_of: Any, reference_of: Any, engine: str, family: str, cache_mode: str) -> None:
    """Fails if the given suffix is overwritten, dropped by DPad, or missing in the result."""
    suffix = (9, 80, 33, 12, 61)
    options = options_for("threshold", cache_mode, SCHEDULES["gaussian"])
    [ours] = run(engine_of(engine, family), [Request(PROMPT, suffix_ids=suffix)], options)
    assert_same(ours, reference_of(family, options, suffix=suffix))
    assert tuple(ours.tokens[-len(suffix) :]) == suffix
    for other in ((), (9, 80, 33, 12, 62)):
        end = len(PROMPT) + GEN
        assert (
            run(engine_of(engine, family), [Request(PROMPT, suffix_ids=other)], options)[0].tokens[:end]
            != ours.tokens[:end]
        )


@each_engine
@each_family
@each_cache
def test_early_termination_keeps_the_given_suffix(
    engine_of: Any, reference_of: Any, engine: str, family: str, cache_mode: str
) -> None:
    """Fails if filling with EOS overwrites the infill's suffix."""
    suffix = (9, 80, 33)
    free = reference_of(family, options_for("threshold", cache_mode, Full()), suffix=suffix)
    eos = free.tokens[len(PROMPT) + 5]
    options = options_for("threshold", cache_mode, Full(), early_termination=True, eos_token_ids=(eos,))
    [ours] = run(engine_of(engine, family), [Request(PROMPT, suffix_ids=suffix)], options)
    assert_same(ours, reference_of(family, options, suffix=suffix, eos=eos))
    assert tuple(ours.tokens[-3:]) == suffix and set(ours.tokens[len(PROMPT) + BLOCK : -3]) == {eos}


@each_engine
@each_cache
def test_an_empty_prompt(engine_of: Any, reference_of: Any, engine: str, cache_mode: str) -> None:
    """Fails if the first position of the canvas cannot be decoded, or if a cached mode fails with K = 0."""
    for family in FAMILIES:
        options, suffix = (
            options_for("threshold", cache_mode, Full()),
            (9, 80, 33, 12, 61),
        )  # with equal inputs all masks would tie
        [ours] = run(engine_of(engine, family), [Request((), suffix_ids=suffix)], options)
        assert_same(ours, reference_of(family, options, prompt=(), suffix=suffix))


@each_engine
def test_confidences_are_probabilities_of_the_committed(engine_of: Any, engine: str) -> None:
    """Fails if an event's confidence belongs to another token, so that the best of a step is not the largest."""
    [ours] = run(engine_of(engine, "llada"), [Request(PROMPT)], options_for("threshold", "none", Full()))
    by_step: dict[tuple[int, int], list[float]] = {}
    for position, when in ours.committed.items():
        by_step.setdefault(when, []).append(ours.confidence[position])
    assert all(0 < c <= 1 for values in by_step.values() for c in values)
    assert any(len(values) > 1 for values in by_step.values())
    assert all(min(values) >= 0.6 for values in by_step.values() if len(values) > 1)


@each_engine
@pytest.mark.parametrize("steps", [3, 6, 48, 96])
def test_fixed_steps_take_as_many_passes(engine_of: Any, engine: str, steps: int) -> None:
    """Fails if the number of passes is wrong for one step per block, with a remainder, or for more steps than masks."""
    options = options_for("fixed", "prefix", Full(), steps=steps)
    for family in FAMILIES:
        [ours] = run(engine_of(engine, family), [Request(PROMPT)], options)
        assert ours.nfe == min(steps, GEN) and MASK not in ours.tokens
        assert all(0 <= token < VOCAB for token in ours.tokens)
