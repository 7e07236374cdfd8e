"""A sequence decodes the same alone, in a batch, on padded axes, and beside another request."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, MASK, OPENERS, VOCAB, Weights, onnx_engine
from decoding import BUCKETS, collect, run

from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.decoding.suffix import Explicit, Full, Gaussian, Uniform
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import EngineError, InvalidRequest

GEN, BLOCK = 48, 16

each_engine = pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
each_family = pytest.mark.parametrize("family", FAMILIES)
each_cache = pytest.mark.parametrize("cache_mode", CACHES)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Random tokens, none of them the mask or EOS."""
    return tuple(int(t) for t in np.random.default_rng(seed).integers(2, MASK, length))


UNEQUAL = [
    Request(prompt(1, 3), seed=5),
    Request(prompt(2, 21), suffix_ids=prompt(3, 4), seed=6),
    Request(prompt(4, 9), schedule=Uniform(4)),
    Request(prompt(5, 9), suffix_ids=prompt(6, 1), schedule=Full()),
]


def options_for(cache_mode: str, **changes: Any) -> GenerationOptions:
    """Options of threshold decoding with dropout."""
    values: dict[str, Any] = {
        "gen_length": GEN,
        "block_length": BLOCK,
        "threshold": 0.6,
        "cache": cache_mode,
        "schedule": Gaussian(k=3, scale=2, window=32),
        "seed": 3,
    }
    return GenerationOptions(**(values | changes))


def assert_rows_are_as_alone(engine: Engine, requests: list[Request], options: GenerationOptions) -> None:
    """Assert that tokens, and the steps in which they were committed, equal those of each request alone."""
    together = run(engine, requests, options)
    for request, row in zip(requests, together):
        [alone] = run(engine, [request], options)
        assert row.tokens == alone.tokens
        assert row.committed == alone.committed
        assert row.nfe == alone.nfe


@each_engine
@each_family
@each_cache
@pytest.mark.parametrize("decoder", ["threshold", "entropy"])
def test_unequal_rows_are_as_alone(engine_of: Any, engine: str, family: str, cache_mode: str, decoder: str) -> None:
    """Fails if prompt, seed, schedule or suffix of one sequence affect another, or padding is attended."""
    opened = engine_of(engine, family)
    rows = run(opened, UNEQUAL, options_for(cache_mode, decoder=decoder, steps=12))
    assert len({row.nfe for row in rows}) > 1 or decoder == "entropy"
    assert_rows_are_as_alone(opened, UNEQUAL, options_for(cache_mode, decoder=decoder, steps=12))


@each_engine
@each_family
@each_cache
def test_a_row_that_ends_early_leaves_the_others(engine_of: Any, engine: str, family: str, cache_mode: str) -> None:
    """Fails if removing a finished sequence mixes up canvases, caches or row numbers."""
    opened = engine_of(engine, family)
    free = run(opened, UNEQUAL, options_for(cache_mode, early_termination=False))
    start = len(UNEQUAL[1].prompt_ids)
    eos = free[1].tokens[start + 3]
    options = options_for(cache_mode, eos_token_ids=(eos,))
    rows = run(opened, UNEQUAL, options)
    assert len({max(row.committed.values())[0] for row in rows}) > 1, "some rows must outlive others"
    assert_rows_are_as_alone(opened, UNEQUAL, options)


@each_engine
@each_family
@each_cache
def test_padded_axes_change_nothing(
    engine_of: Any, make_bundle: Any, engine: str, family: str, cache_mode: str
) -> None:
    """Fails if the padding of a bucket is attended, decoded, or written to the cache."""
    padding: Engine = OPENERS[engine](make_bundle(family), BUCKETS[engine])
    for changes in ({}, {"decoder": "margin", "steps": 24}, {"temperature": 0.7}):
        options = options_for(cache_mode, **changes)
        plain, padded = run(engine_of(engine, family), UNEQUAL, options), run(padding, UNEQUAL, options)
        assert [row.tokens for row in plain] == [row.tokens for row in padded]
        assert [row.committed for row in plain] == [row.committed for row in padded]


@each_engine
@each_family
@each_cache
def test_interleaved_requests_do_not_meet(engine_of: Any, engine: str, family: str, cache_mode: str) -> None:
    """Fails if the engine keeps state of a request: caches, angles, random state, bindings."""
    opened = engine_of(engine, family)
    options = options_for(cache_mode, temperature=0.5)
    pairs = [UNEQUAL[:2], UNEQUAL[2:]]
    alone = [run(opened, requests, options) for requests in pairs]
    streams = [decode(opened, requests, options) for requests in pairs]
    events = [[event for event in side if event] for side in zip(*zip_longest(*streams), strict=True)]
    for side in range(2):
        assert [r.committed for r in collect(events[side], 2)] == [r.committed for r in alone[side]]
        assert [r.confidence for r in collect(events[side], 2)] == [r.confidence for r in alone[side]]


def favour_mask(weights: Weights) -> None:
    """Make the mask the likeliest token at many positions: channel 0 of every embedding is large."""
    for name, weight in weights.items():
        if "wte" in name or "embed_tokens" in name:
            weight[:, 0] = 4.0
        elif name in ("model.transformer.ff_out.weight", "lm_head.weight"):
            weight[MASK, 0] = 6.0


@each_engine
@each_family
@each_cache
@pytest.mark.parametrize(
    "changes",
    [{}, {"decoder": "fixed", "steps": 12}, {"decoder": "factor", "factor": 1.5}, {"temperature": 1.0}],
)
def test_a_mask_that_predicts_itself(
    engine_of: Any, engine: str, family: str, cache_mode: str, changes: dict[str, Any]
) -> None:
    """Fails if a model that predicts the mask hangs the loop, leaves a mask, or affects other sequences."""
    opened = engine_of(engine, family, edit=favour_mask)
    options = options_for(cache_mode, **changes)
    events = list(islice(decode(opened, UNEQUAL, options), len(UNEQUAL) * 2 * GEN + 1))
    assert len(events) <= len(UNEQUAL) * 2 * GEN, "at most one useless pass for each useful one"
    assert not any(MASK in event.tokens for event in events)
    assert any(len(event.tokens) == 0 for event in events), "never stuck"
    assert all(row.tokens and MASK not in row.tokens for row in run(opened, UNEQUAL, options))
    assert_rows_are_as_alone(opened, UNEQUAL, options)


@each_engine
@each_family
def test_a_seed_is_the_text(engine_of: Any, engine: str, family: str) -> None:
    """Fails if the draw ignores its seed, uses global state, or depends on the batch."""
    opened = engine_of(engine, family)
    options = options_for("prefix", temperature=1.0, schedule=Full())
    same = [Request(prompt(1, 6), seed=seed) for seed in (1, 1, 2, None)]
    first, again, other, default = run(opened, same, options)
    assert first.tokens == again.tokens
    assert len({tuple(r.tokens) for r in (first, other, default)}) == 3
    np.random.seed(0)
    assert_rows_are_as_alone(opened, same, options)
    [by_options] = run(opened, [Request(prompt(1, 6))], options_for("prefix", temperature=1.0, schedule=Full(), seed=1))
    assert by_options.tokens == first.tokens


@each_engine
@each_family
def test_top_k_one_is_greedy(engine_of: Any, engine: str, family: str) -> None:
    """Fails if filters are applied after the draw, or if confidence uses another distribution than the family's.

    In LLaDA that is the model's own distribution; in Dream it is the filtered one, in which the only token is certain.
    """
    opened = engine_of(engine, family)
    greedy = run(opened, UNEQUAL, options_for("dual", **({} if family == "llada" else {"threshold": 0.0})))
    for changes in ({"top_k": 1}, {"top_p": 1e-9}):
        drawn = run(opened, UNEQUAL, options_for("dual", temperature=1.5, **changes))
        assert [row.tokens for row in drawn] == [row.tokens for row in greedy]
        assert [row.committed for row in drawn] == [row.committed for row in greedy]


def spoil(name_part: str, value: float, row: int | None = None) -> Any:
    """An edit that writes `value` over a weight, or over one row of it."""

    def edit(weights: Weights) -> None:
        [name] = [name for name in weights if name_part in name]
        weights[name][slice(None) if row is None else row] = value

    return edit


NAN, INF = float("nan"), float("inf")
BROKEN = {
    "llada norm": ("llada", spoil("ln_f", NAN)),
    "llada head row": ("llada", spoil("transformer.ff_out", NAN, row=40)),
    "llada infinite head": ("llada", spoil("transformer.ff_out", INF, row=40)),
    "dream norm": ("dream", spoil("model.norm.weight", NAN)),
    "dream head row": ("dream", spoil("lm_head", NAN, row=40)),
}


@each_engine
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("changes", [{}, {"decoder": "margin"}, {"temperature": 1.0}])
def test_broken_weights_are_an_error(engine_of: Any, engine: str, broken: str, changes: dict[str, Any]) -> None:
    """Fails if NaN or infinite logits become text."""
    family, edit = BROKEN[broken]
    with pytest.raises(EngineError, match=r"NaN|inf"):
        run(engine_of(engine, family, edit=edit), [Request(prompt(1, 6))], options_for("none", **changes))


@each_engine
def test_refusals_come_before_any_work(engine_of: Any, engine: str) -> None:
    """Fails if a request that cannot be served is refused only after decoding has begun."""
    opened = engine_of(engine, "llada")
    good = Request(prompt(1, 6))
    for requests, options, words in [
        ([good, Request((1, MASK, 2))], options_for("none"), str(MASK)),
        ([good, Request(prompt(1, 6), suffix_ids=(VOCAB,))], options_for("none"), str(VOCAB)),
        ([good, Request(prompt(1, 465))], options_for("none"), "513"),
        ([good], options_for("none", schedule=Gaussian(window=GEN + 1)), str(GEN + 1)),
        ([good], options_for("none", schedule=Explicit(())), "no block"),
        ([good], options_for("none", schedule=Explicit(((0, 40), (), ()))), "40"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            decode(opened, requests, options)
    assert run(opened, [Request(prompt(1, 464))], options_for("none", threshold=0.0))[0].nfe == 3


def test_threads_may_share_an_engine(make_bundle: Any) -> None:
    """Fails if two concurrent requests affect each other."""
    engine = onnx_engine(make_bundle("llada"))
    requests = [Request(prompt(seed, 5 + seed), seed=seed) for seed in range(8)]
    options = GenerationOptions(gen_length=48, block_length=16, cache="dual", decoder="fixed")
    alone = [run(engine, [request], options)[0] for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: run(engine, [request], options)[0], requests))
    assert together == alone
