"""`GpuEngine` on simulated hardware gives the same tokens in the same passes as ONNX Runtime.

`host_trt.py` describes what is simulated and what it refuses. Nothing here runs on a GPU.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, MASK
from decoding import Decoded, run
from host_trt import opened

from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import DECODERS, GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import Full, Gaussian, SuffixSchedule
from dpad.runtime.engines.gpu.engine import GpuEngine

GEN, BLOCK = 48, 16
SCHEDULES: dict[str, SuffixSchedule] = {"full": Full(), "gaussian": Gaussian(k=3, scale=2, window=32)}


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(2, MASK, length))


# For these requests, confidences in a pass differ by at least 6e-5. Closer ones would be ordered by rounding, which
# depends on the processor.
UNEQUAL = [Request(prompt(25, 5)), Request(prompt(26, 23), suffix_ids=(9, 80, 33)), Request(prompt(27, 11))]


def options_for(cache: str, decoder: str = "threshold", **changes: Any) -> GenerationOptions:
    values: dict[str, Any] = {
        "gen_length": GEN,
        "block_length": BLOCK,
        "cache": cache,
        "decoder": decoder,
        "schedule": Full(),
        "threshold": 0.6,
        "factor": 1.5,
        "steps": 21,
        "seed": 3,
        "early_termination": False,
    }
    return GenerationOptions(**(values | changes))


@pytest.fixture(scope="module")
def trt_of(make_bundle: Callable[..., Path]) -> Iterator[Callable[..., GpuEngine]]:
    """`trt_of(family, rtx=False)`, an engine that is opened once."""
    engines: dict[tuple[str, bool], Any] = {}

    def open_engine(family: str, rtx: bool = False) -> GpuEngine:
        if (family, rtx) not in engines:
            context = opened(make_bundle(family), rtx)
            engines[family, rtx] = context, context.__enter__()
        return engines[family, rtx][1]

    yield open_engine
    for context, _ in engines.values():
        context.__exit__(None, None, None)


def assert_same(ours: list[Decoded], theirs: list[Decoded]) -> None:
    """Assert equal tokens, passes and order, and confidences equal within the rounding of padded float32 sums."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.nfe, a.committed) == (b.tokens, b.nfe, b.committed)
        assert a.confidence == pytest.approx(b.confidence, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_decodes_as_onnxruntime(
    engine_of: Any, trt_of: Any, family: str, cache: str, decoder: str, schedule: str
) -> None:
    """Fails if a bucket, a binding, a cached row or a replayed graph changes a token or its pass."""
    options = options_for(cache, decoder, schedule=SCHEDULES[schedule])
    theirs = run(engine_of("onnxruntime", family), UNEQUAL, options)
    assert_same(run(trt_of(family), UNEQUAL, options), theirs)
    assert_same(run(trt_of(family), UNEQUAL[1:2], options), theirs[1:2])


@pytest.mark.parametrize("cache", CACHES)
def test_tensorrt_rtx_decodes_the_same(engine_of: Any, trt_of: Any, cache: str) -> None:
    """Fails if TensorRT-RTX gives other tokens than TensorRT."""
    options = options_for(cache)
    ours = run(trt_of("dream", rtx=True), UNEQUAL, options)
    assert_same(ours, run(engine_of("onnxruntime", "dream"), UNEQUAL, options))


@pytest.mark.parametrize("cache", CACHES)
def test_an_empty_prompt_and_an_early_end(engine_of: Any, trt_of: Any, cache: str) -> None:
    """Fails if a cached step without cached rows, or a batch that shrinks between blocks, gives wrong tokens."""
    requests = [Request((), suffix_ids=(9, 80, 33, 12, 61)), Request(prompt(4, 9)), Request(prompt(5, 17))]
    theirs = run(engine_of("onnxruntime", "dream"), requests, options_for(cache))
    assert_same(run(trt_of("dream"), requests, options_for(cache)), theirs)
    eos = theirs[1].tokens[9 + 4]
    ends = options_for(cache, early_termination=True, eos_token_ids=(eos,))
    early = run(engine_of("onnxruntime", "dream"), requests, ends)
    assert early[1].nfe < theirs[1].nfe
    assert_same(run(trt_of("dream"), requests, ends), early)


def test_drawn_tokens_are_those_of_onnxruntime(engine_of: Any, trt_of: Any) -> None:
    """Fails if the decide plan gets other random numbers, another sequence's options or other logits."""
    options = options_for("dual", temperature=0.8, top_k=20)
    requests = [Request(row.prompt_ids, seed=seed) for seed, row in enumerate(UNEQUAL)]
    assert_same(run(trt_of("llada"), requests, options), run(engine_of("onnxruntime", "llada"), requests, options))


def test_a_second_request_replays_and_allocates_nothing(trt_of: Any) -> None:
    """Fails if graphs or buffers are made again for shapes that have occurred before."""
    engine = trt_of("llada")
    options = options_for("dual", decoder="fixed")
    for _ in range(3):
        run(engine, UNEQUAL[:1], options)
    before, replays = engine.hardware.counts.copy(), engine.simulation.counts["replays"]
    [again] = run(engine, UNEQUAL[:1], options)
    after = engine.hardware.counts
    assert all(after[name] == before[name] for name in ("alloc", "free", "begin_capture"))
    assert engine.simulation.counts["replays"] - replays == again.nfe


def test_threads_may_share_an_engine(trt_of: Any) -> None:
    """Fails if two concurrent requests affect each other."""
    engine, options = trt_of("llada"), options_for("dual", decoder="fixed")
    requests = [Request(prompt(seed, 5 + seed)) for seed in range(8)]
    alone = [run(engine, [request], options)[0] for request in requests]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda request: run(engine, [request], options)[0], requests))
    assert_same(together, alone)
