"""Given tokens between blanks, compared with the simple published decoder."""

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import EOS, FAMILIES, MASK
from decoding import run
from reference import Rules, decode
from test_decoding import BLOCK, GEN, PROMPT, SCHEDULES, assert_same, kept_positions, options_for

from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import InvalidRequest

SUFFIX = (9, 80, 33)
# The first block has blanks at its end, the second has none, and the third has blanks on both sides of given tokens.
GIVEN = tuple((place, 3 + place) for place in (*range(9), *range(16, 32), 36, 37, 40))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache_mode", ["none", "prefix", "dual"])
@pytest.mark.parametrize("schedule", ["full", "gaussian"])
def test_given_tokens_stay_and_are_seen(
    engine_of: Any, make_bundle: Any, engine: str, family: str, cache_mode: str, schedule: str
) -> None:
    """Fails if a given token is changed or dropped from a thinned suffix, or a block without blanks takes a pass."""
    options = options_for("threshold", cache_mode, SCHEDULES[schedule])
    checkpoint = Checkpoint.open(make_bundle(family))
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)
    rules = Rules(
        gen_length=GEN,
        block_length=BLOCK,
        kept=kept_positions(options.schedule, len(PROMPT)),
        decoder="threshold",
        cache=cache_mode,
        mask=MASK,
        eos=EOS,
        shift=1 if family == "dream" else 0,
        threshold=options.threshold,
        early_termination=False,
    )
    theirs = decode(model, list(PROMPT), rules, list(SUFFIX), dict(GIVEN))
    [ours] = run(engine_of(engine, family), [Request(PROMPT, SUFFIX, given=GIVEN)], options)
    assert_same(ours, theirs)
    assert all(ours.tokens[len(PROMPT) + place] == token for place, token in GIVEN)
    assert not {len(PROMPT) + place for place, _ in GIVEN} & ours.committed.keys()


def test_a_growing_cache_takes_them_too(engine_of: Any) -> None:
    """Fails if a block without blanks is missing in the cache that later blocks read."""
    for family in FAMILIES:
        options = options_for("threshold", "extend", SCHEDULES["full"])
        [ours] = run(engine_of("torch", family), [Request(PROMPT, SUFFIX, given=GIVEN)], options)
        assert MASK not in ours.tokens and len(ours.committed) == GEN - len(GIVEN)
        assert all(ours.tokens[len(PROMPT) + place] == token for place, token in GIVEN)


def test_an_end_of_text_ends_its_blank_only(engine_of: Any) -> None:
    """Fails if EOS in one blank fills later blanks, or overwrites given tokens."""
    options = options_for("threshold", "prefix", SCHEDULES["full"])
    [free] = run(engine_of("torch", "llada"), [Request(PROMPT, SUFFIX, given=GIVEN)], options)
    eos = free.tokens[len(PROMPT) + 12]
    ending = options_for("threshold", "prefix", SCHEDULES["full"], early_termination=True, eos_token_ids=(eos,))
    [ours] = run(engine_of("torch", "llada"), [Request(PROMPT, SUFFIX, given=GIVEN)], ending)
    assert ours.tokens == free.tokens


@pytest.mark.parametrize(
    "given, said",
    [
        (((48, 3),), "places"),
        (((-1, 3),), "places"),
        (((1, 3), (1, 4)), "places"),
        (((1, MASK),), "mask id"),
        (((1, 10**6),), "outside the vocabulary"),
        (tuple((place, 3) for place in range(48)), "at least one"),
        (5, "not a list of pairs"),
        (((1, 2, 3),), "not a list of pairs"),
        (((1, "a"),), "not a list of pairs"),
        ((None,), "not a list of pairs"),
    ],
)
def test_what_cannot_be_given(engine_of: Any, given: Any, said: str) -> None:
    """Fails if a position outside the generated text, the mask, or a value that is not a pair is accepted."""
    with pytest.raises(InvalidRequest, match=said):
        run(
            engine_of("torch", "llada"),
            [Request(PROMPT, given=given)],
            options_for("threshold", "none", SCHEDULES["full"]),
        )


def test_arrays_are_read() -> None:
    """Fails if numpy arrays are refused, or their numbers are not converted to Python's."""
    assert Request(PROMPT, given=np.array([[1, 5], [2, 6]])).given == ((1, 5), (2, 6))  # type: ignore[arg-type]
