"""Compares SDAR and Fast-dLLM v2 with transformers' models, which use the whole block-causal mask and no cache.

Every engine and commit rule is compared with `block_reference.py`, for prompts that end inside a block and at its end.
"""

import asyncio
from itertools import islice
from typing import Any

import numpy as np
import pytest
from block_reference import LENGTH, expected, forward_of
from checkpoints import BLOCK_CAUSAL, MASK, OPENERS, VOCAB, Weights
from decoding import BUCKETS, Decoded, run
from reference import Result

from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.decoding.options import DECODERS, GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.decoding.suffix import NOTHING, Full, Gaussian, Uniform
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel
from dpad.serving.admission import Admission
from dpad.serving.health import Health

GEN = 24
PROMPTS = (1, 3, 8, 13, 17)  # tokens: less than a block, whole blocks, and one more than whole blocks
CASES = [
    *((decoder, length) for decoder in ("threshold", "fixed") for length in PROMPTS),
    *((decoder, 13) for decoder in DECODERS if decoder not in ("threshold", "fixed")),
]

each_engine = pytest.mark.parametrize("engine", ["torch", "onnxruntime", "onnxruntime-cuda", "tensorrt"])
each_family = pytest.mark.parametrize("family", BLOCK_CAUSAL)


def prompt_of(length: int, seed: int = 7) -> tuple[int, ...]:
    """Random tokens, none of them the mask or EOS."""
    return tuple(int(t) for t in np.random.default_rng(seed).integers(2, MASK, length))


def options_for(family: str, decoder: str = "threshold", **changes: Any) -> GenerationOptions:
    """Options under which the random models commit several tokens in some steps."""
    values: dict[str, Any] = {
        "gen_length": GEN,
        "block_length": LENGTH[family],
        "cache": BLOCKS,
        "schedule": NOTHING,
        "decoder": decoder,
        "threshold": 0.5,
        "factor": 1.5,
        "steps": 3 * (GEN // LENGTH[family]),
        "early_termination": False,
    }
    return GenerationOptions(**(values | changes))


def assert_same(ours: Decoded, theirs: Result) -> None:
    """Assert equal canvases and passes, and the same positions committed together in the same order."""
    assert ours.tokens == theirs.tokens
    assert ours.nfe == theirs.nfe
    assert together(ours.committed) == together(theirs.committed)


def together(committed: dict[int, Any]) -> list[list[int]]:
    """The positions committed by each pass, in order of passes."""
    return [sorted(p for p, when in committed.items() if when == each) for each in sorted(set(committed.values()))]


@each_engine
@each_family
def test_logits_block_by_block_are_those_of_the_whole_mask(engine_of: Any, engine: str, family: str) -> None:
    """Fails if a block attends later blocks, misses earlier ones, or stores wrong keys and values."""
    opened, length = engine_of(engine, family, sharpness=1.5), 23
    canvas = np.random.default_rng(3).integers(2, VOCAB, (1, length))
    canvas[0, 17:] = MASK
    slots, ours = opened.slots.take(length), []
    for start in range(0, length, LENGTH[family]):
        block = np.arange(start, min(start + LENGTH[family], length))[None]
        inputs = StepInputs(canvas, block, slots[None, :start], block - start, slots[block], want_logits=True)
        ours.append(opened.step(inputs).logits[0])
    opened.slots.give(slots)
    theirs = forward_of(family, 1.5)(canvas[0].tolist())
    assert 1.0 < theirs.std() < 4.0
    assert np.abs(np.concatenate(ours) - theirs.numpy()).max() <= 1e-5


@each_family
def test_the_mask_is_neither_causal_nor_full(family: str) -> None:
    """Fails if causal and full masks give the same logits, so that agreement would prove nothing."""
    forward, length = forward_of(family), LENGTH[family]
    canvas = list(prompt_of(3 * length))
    before = forward(canvas)
    for changed in (length, 2 * length - 1):
        other = forward([token if p != changed else 99 for p, token in enumerate(canvas)])
        assert ((before - other)[length:].abs().amax(dim=1) > 1e-3).all(), "a block sees itself and what was before"
        assert (before - other)[:length].abs().max() < 1e-4, "and nothing behind it"


@each_engine
@each_family
@pytest.mark.parametrize(("decoder", "length"), CASES)
def test_decodes_as_with_the_whole_mask(engine_of: Any, engine: str, family: str, decoder: str, length: int) -> None:
    """Fails if blocks are aligned at the prompt's end, or a finished block is stored too early or not attended."""
    options, prompt = options_for(family, decoder), prompt_of(length)
    theirs = expected(family, options, prompt)
    assert MASK not in theirs.tokens and theirs.most_at_once > 1
    [ours] = run(engine_of(engine, family), [Request(prompt)], options)
    assert_same(ours, theirs)


@each_engine
@each_family
@pytest.mark.parametrize("decoder", ["threshold", "fixed"])
@pytest.mark.parametrize("length", [3, 16, 21])
def test_early_termination(engine_of: Any, engine: str, family: str, decoder: str, length: int) -> None:
    """Fails if EOS ends the text before its block is complete, or if EOS in the prompt ends the text."""
    block = LENGTH[family]
    free = expected(family, options_for(family, decoder), prompt_of(length))
    start = (length // block + 1) * block  # the second block that is decoded
    eos = free.tokens[start + 1]
    prompt = (*prompt_of(length)[:-1], eos)
    options = options_for(family, decoder, early_termination=True, eos_token_ids=(eos,))
    theirs = expected(family, options, prompt, eos)
    [ours] = run(engine_of(engine, family), [Request(prompt)], options)
    assert_same(ours, theirs)
    plain = expected(family, options, prompt_of(length), eos)
    assert plain.ended_early and plain.nfe < free.nfe
    [ours] = run(engine_of(engine, family), [Request(prompt_of(length))], options)
    assert_same(ours, plain)


UNEQUAL = [
    Request(prompt_of(3, 1), seed=5),
    Request(prompt_of(21, 2), seed=6),
    Request(prompt_of(16, 4)),
    Request(prompt_of(9, 5)),
]


def assert_rows_are_as_alone(engine: Engine, options: GenerationOptions) -> None:
    """Assert that tokens, passes, and steps of commits equal those of each request alone."""
    for request, row in zip(UNEQUAL, run(engine, UNEQUAL, options)):
        [alone] = run(engine, [request], options)
        assert (row.tokens, row.nfe, row.committed) == (alone.tokens, alone.nfe, alone.committed)


@each_engine
@each_family
@pytest.mark.parametrize("changes", [{}, {"decoder": "entropy"}, {"temperature": 0.7}])
def test_unequal_rows_are_as_alone(engine_of: Any, engine: str, family: str, changes: dict[str, Any]) -> None:
    """Fails if a sequence that waits for longer prompts loses its cache, counts passes, or commits too early."""
    assert_rows_are_as_alone(engine_of(engine, family), options_for(family, **changes))


@each_engine
@each_family
def test_a_row_that_ends_early_leaves_the_others(engine_of: Any, engine: str, family: str) -> None:
    """Fails if removing a finished sequence mixes up canvases, caches or row numbers."""
    opened = engine_of(engine, family)
    free = run(opened, UNEQUAL, options_for(family))
    eos = free[1].tokens[len(UNEQUAL[1].prompt_ids) + 5]
    options = options_for(family, early_termination=True, eos_token_ids=(eos,))
    assert len({max(row.committed.values())[0] for row in run(opened, UNEQUAL, options)}) > 1
    assert_rows_are_as_alone(opened, options)


@pytest.mark.parametrize("engine", BUCKETS)
@each_family
def test_padded_axes_change_nothing(engine_of: Any, make_bundle: Any, engine: str, family: str) -> None:
    """Fails if the padding of a bucket is attended, decoded, or written to the cache."""
    padding: Engine = OPENERS[engine](make_bundle(family), BUCKETS[engine])
    plain, padded = (run(each, UNEQUAL, options_for(family)) for each in (engine_of(engine, family), padding))
    assert [(row.tokens, row.committed) for row in plain] == [(row.tokens, row.committed) for row in padded]


@each_engine
@each_family
def test_an_empty_prompt(engine_of: Any, engine: str, family: str) -> None:
    """Fails if an empty prompt cannot be decoded, alone or beside others."""
    requests = [Request(()), Request(prompt_of(16))]
    for rows in (requests[:1], requests):
        first = run(engine_of(engine, family), rows, options_for(family))[0]
        assert len(first.tokens) == GEN == len(first.committed) and MASK not in first.tokens
        assert first.committed[0][1] >= 1, "it is decided in a step of its own block, not while others fill the cache"


def favour_mask(weights: Weights) -> None:
    """Make the mask the likeliest token at many positions: channel 0 of every embedding is large."""
    weights["model.embed_tokens.weight"][:, 0] = 4.0
    weights["lm_head.weight"][MASK, 0] = 6.0


@each_engine
@each_family
@pytest.mark.parametrize("changes", [{}, {"decoder": "fixed"}, {"temperature": 1.0}])
def test_a_mask_that_predicts_itself(engine_of: Any, engine: str, family: str, changes: dict[str, Any]) -> None:
    """Fails if a first token predicted as the mask hangs the loop or stays masked."""
    opened, options = engine_of(engine, family, edit=favour_mask), options_for(family, **changes)
    events = list(islice(decode(opened, UNEQUAL, options), 8 * GEN * len(UNEQUAL)))
    assert not any(MASK in event.tokens for event in events)
    for row in range(len(UNEQUAL)):
        own = [(event.block, event.step) for event in events if event.index == row]
        for block in {block for block, _ in own}:
            steps = [step for where, step in own if where == block and step]
            assert steps == [*range(1, len(steps) + 1)], "a pass made again for its first token is a refresh too"
    assert sum(event.finished for event in events) == len(UNEQUAL)
    assert all(MASK not in row.tokens for row in run(opened, UNEQUAL, options))
    assert_rows_are_as_alone(opened, options)


@each_family
def test_what_makes_no_sense_is_refused(engine_of: Any, family: str) -> None:
    """Fails if an option that a block-causal model does not support is ignored, or the error lacks the cause."""
    opened, good = engine_of("torch", family), Request(prompt_of(5))
    refused: list[tuple[Request, dict[str, Any], str]] = [
        *((good, {"cache": name}, repr(name)) for name in CACHES),
        (good, {"block_length": 12}, "12"),
        (good, {"schedule": Gaussian()}, "Gaussian"),
        (good, {"schedule": Full()}, "Full"),
        (Request(prompt_of(5), suffix_ids=(9, 80)), {}, "suffix of 2"),
        (Request(prompt_of(5), schedule=Uniform(4)), {}, "Uniform"),
    ]
    for request, changes, words in refused:
        with pytest.raises(InvalidRequest, match=rf"{words}(.|\n)*causal between blocks"):
            decode(opened, [request], options_for(family, **changes))
    with pytest.raises(InvalidRequest, match="'blocks' is not one of none"):
        decode(engine_of("torch", "llada"), [good], GenerationOptions(cache=BLOCKS))


def test_a_server_s_canary_fits_the_blocks(engine_of: Any) -> None:
    """Fails if a server's health check sends a block-causal model an invalid request."""
    model = DiffusionModel(engine_of("torch", "sdar"), None)
    assert asyncio.run(Health(model, Admission(4)).obstacle()) == "" and model.status.passes
