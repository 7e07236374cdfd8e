"""Compares the Monte-Carlo bound with all masks that it can draw, using likelihoods computed in PyTorch."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from block_reference import LENGTH, SHIFT, forward_of
from checkpoints import BLOCK_CAUSAL, FAMILIES, MASK
from conftest import MakeBundle
from estimating import bounds
from reference import forward

from dpad.evaluation.likelihood import estimates, whole
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.runtime.decoding.options import GenerationOptions, defaults
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import run
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.suffix import Explicit, Full, Gaussian, SuffixSchedule
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import InvalidRequest

PROMPT, TARGET = [9, 80, 33, 4, 61], [17, 5, 90, 90, 2]
BLOCK, GEN = 3, 12  # the target fills blocks of 3 and 2 tokens; one mask of the second block and two blocks follow
SCHEDULES = {"full": Full(), "thinned": Explicit(((1, 4, 8), (0, 3), (2,), ()))}
DRAWS = 160

each_family = pytest.mark.parametrize("family", FAMILIES)


def kept(schedule: SuffixSchedule, block: int) -> list[int]:
    """The canvas positions after the block that the schedule keeps."""
    end = len(PROMPT) + (block + 1) * BLOCK
    distances = schedule.distances[block] if isinstance(schedule, Explicit) else range(GEN - (block + 1) * BLOCK)
    return [end + distance for distance in distances]


def every_estimate(make_bundle: MakeBundle, family: str, schedule: SuffixSchedule) -> tuple[list[float], list[float]]:
    """All values that one draw can have, and their probabilities, from forward passes without cache in PyTorch."""
    checkpoint = Checkpoint.open(make_bundle(family))
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)
    shift = checkpoint.config.logit_shift
    assert shift == {"llada": 0, "dream": 1}[family]
    choices = []
    for block, start in enumerate(range(0, len(TARGET), BLOCK)):
        places = range(start, min(start + BLOCK, len(TARGET)))
        outcomes = []
        for size in range(1, len(places) + 1):
            for masked in itertools.combinations(places, size):
                text = [MASK if place in masked else token for place, token in enumerate(TARGET[: places[-1] + 1])]
                canvas = PROMPT + text + [MASK] * (GEN - len(text))
                retained = [*range(len(PROMPT) + (block + 1) * BLOCK), *kept(schedule, block)]
                logits, _ = forward(model, canvas, retained, retained, {})
                rows = {place: logits[len(PROMPT) + place - shift].double().log_softmax(-1) for place in masked}
                nats = -sum(float(rows[place][TARGET[place]]) for place in masked)
                probability = 1 / len(places) / math.comb(len(places), size)
                outcomes.append((len(places) / size * nats, probability))
        choices.append(outcomes)
    combined = list(itertools.product(*choices))
    return [sum(v for v, _ in parts) for parts in combined], [math.prod(p for _, p in parts) for parts in combined]


def draw(engine: Engine, schedule: SuffixSchedule, **changes: int) -> np.ndarray:
    options = GenerationOptions(gen_length=GEN, block_length=BLOCK, schedule=schedule)
    arguments = {"draws": DRAWS, "seed": (3,)} | changes
    return bounds(engine, PROMPT, TARGET, options, **arguments)  # type: ignore[arg-type]


@each_family
@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_every_draw_is_one_that_pytorch_computes(
    make_bundle: MakeBundle, engine_of: Callable[..., Engine], family: str, name: str
) -> None:
    """Fails if positions, the predicting row, the suffix, the weights or the frequencies of masks are wrong."""
    chosen = {}
    for kind, schedule in SCHEDULES.items():
        values, probabilities = every_estimate(make_bundle, family, schedule)
        drawn = draw(engine_of(name, family), schedule)
        distance = np.abs(drawn[:, None] - np.array(values))
        assert distance.min(axis=1).max() < 1e-3
        assert np.sort(distance, axis=1)[:, 1].min() > 2e-3, "two outcomes are too close to tell apart"
        chosen[kind] = distance.argmin(axis=1)
        counts = np.bincount(chosen[kind], minlength=len(values))
        expected = DRAWS * np.array(probabilities)
        assert ((counts - expected) ** 2 / expected).sum() < 45.3  # chi-squared, 20 degrees of freedom, p = 0.001
        exact = float(np.dot(values, probabilities))
        assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(DRAWS)
    assert (chosen["full"] == chosen["thinned"]).all(), "the schedules are compared on other masks"


@each_family
def test_one_block_is_the_bound_without_a_suffix(
    make_bundle: MakeBundle, engine_of: Callable[..., Engine], family: str
) -> None:
    """Fails if the text is not one block with an exact number of masks and without a suffix."""
    checkpoint = Checkpoint.open(make_bundle(family))
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)
    shift, length = checkpoint.config.logit_shift, len(TARGET)
    values = []
    for size in range(1, length + 1):
        for masked in itertools.combinations(range(length), size):
            canvas = PROMPT + [MASK if place in masked else token for place, token in enumerate(TARGET)]
            everything = list(range(len(canvas)))
            logits, _ = forward(model, canvas, everything, everything, {})
            rows = {place: logits[len(PROMPT) + place - shift].double().log_softmax(-1) for place in masked}
            values.append(-length / size * sum(float(rows[place][TARGET[place]]) for place in masked))
    engine = engine_of("onnxruntime", family)
    options = whole(engine.contract, GenerationOptions(schedule=Gaussian()), length)
    drawn = bounds(engine, PROMPT, TARGET, options, 40, (5,))
    assert np.abs(drawn[:, None] - np.array(values)).min(axis=1).max() < 1e-3


def block_estimates(family: str, prompt: list[int], target: list[int]) -> list[float]:
    """All values of one draw of a block-causal model, from forward passes with the whole mask."""
    forward_once, length, shift = forward_of(family), LENGTH[family], SHIFT[family]
    choices: list[list[float]] = []
    for start in range(len(prompt) // length * length, len(prompt) + len(target), length):
        places = [p for p in range(start, start + length) if len(prompt) <= p < len(prompt) + len(target)]
        clean = (prompt + target)[: places[-1] + 1] + [MASK] * (start + length - places[-1] - 1)
        if shift and places[0] == start > 0:
            row = forward_once(clean[:start])[-1].double().log_softmax(-1)
            choices.append([-float(row[clean[places.pop(0)]])])
        outcomes = []
        for masked in (m for size in range(1, len(places) + 1) for m in itertools.combinations(places, size)):
            logits = forward_once([MASK if p in masked else token for p, token in enumerate(clean)])
            rows = {p: logits[p - shift].double().log_softmax(-1) for p in masked}
            outcomes.append(-len(places) / len(masked) * sum(float(rows[p][clean[p]]) for p in masked))
        choices += [outcomes] if outcomes else []
    return [sum(parts) for parts in itertools.product(*choices)]


@pytest.mark.parametrize("family", BLOCK_CAUSAL)
@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize(("before", "behind"), [(5, 5), (8, 4), (3, 6)])
def test_blocks_of_the_model_are_scored_over_what_is_clean(
    engine_of: Callable[..., Engine], family: str, name: str, before: int, behind: int
) -> None:
    """Fails if a block attends later ones, is aligned at the prompt, or its first token is scored twice."""
    tokens = np.random.default_rng(before).integers(5, MASK, before + behind).tolist()
    prompt, target = tokens[:before], tokens[before:]
    engine = engine_of(name, family)
    options = GenerationOptions(**{"gen_length": 16, **defaults(engine.contract)})
    values = np.array(block_estimates(family, prompt, target))
    drawn = bounds(engine, prompt, target, options, 24, (1,))
    distance = np.abs(drawn[:, None] - values)
    assert distance.min(axis=1).max() < 1e-3
    assert len(values) < 4 or len(set(distance.argmin(axis=1).tolist())) > 3


@each_family
def test_draws_depend_on_the_seed_only(engine_of: Callable[..., Engine], family: str) -> None:
    """Fails if a draw depends on the number of draws, or does not depend on the seed."""
    engine, schedule = engine_of("onnxruntime", family), Gaussian(k=3, scale=2, window=9)
    drawn = draw(engine, schedule, draws=9)
    assert np.allclose(draw(engine, schedule, draws=5), drawn[:5], atol=1e-4)
    assert not np.allclose(draw(engine, schedule, draws=9, seed=(4,)), drawn, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["dream", "fast_dllm"])
def test_estimates_share_passes_with_what_is_decoded(engine_of: Callable[..., Engine], family: str) -> None:
    """Fails if sharing a pass changes an estimate or a text, or an estimate gets no logits in a shared pass."""
    engine = engine_of("torch", family)
    options = GenerationOptions(**{"gen_length": 16, "block_length": 8, "cache": "none", **defaults(engine.contract)})
    sampled = GenerationOptions(**{**vars(options), "temperature": 0.8})

    def made() -> tuple[list[Sequence], list[Sequence]]:
        drawn = list(estimates(engine.contract, PROMPT, TARGET, options, draws=3, seed=(7,)))
        return list(drawn), [Sequence(Request((8, 9, 30)), each, engine.contract) for each in (options, sampled)]

    drawn, texts = made()
    list(run(engine, [*drawn, *texts]))
    others, alone = made()
    for sequence in (*others, *alone):
        list(run(engine, [sequence]))
    assert [one.nats for one in drawn] == pytest.approx([one.nats for one in others], abs=1e-4)
    assert [one.token_ids() for one in texts] == [one.token_ids() for one in alone]


@pytest.mark.parametrize(
    ("prompt", "target", "said"),
    [
        ([5], [], "without tokens"),
        ([5], [6, MASK], "mask id"),
        ([MASK], [6], "mask id"),
        ([5], [6] * 512, "over this bundle's 512"),
    ],
)
def test_what_has_no_bound_is_refused(
    engine_of: Callable[..., Engine], prompt: list[int], target: list[int], said: str
) -> None:
    """Fails if an estimate is returned for a text that cannot be scored."""
    with pytest.raises(InvalidRequest, match=said):
        bounds(engine_of("onnxruntime", "llada"), prompt, target, GenerationOptions(), 1, (0,))
