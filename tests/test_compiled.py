"""Steps compiled by PyTorch have the tokens and passes of the eager reference; the CPU runs the GPU's code."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import BLOCK_CAUSAL, FAMILIES, MASK, random_weights, raw_config, torch_engine, write_checkpoint
from compiled import compiled_engine
from decoding import Decoded, run
from torch._dynamo.utils import counters

from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.decoding.options import DECODERS, GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import NOTHING, Full, Gaussian
from dpad.runtime.engines.base import Engine

BLOCK = {"llada": 16, "dream": 16, "sdar": 4, "fast_dllm": 8}
GAUSSIAN = Gaussian(k=3, scale=2, window=32)
MODES = [(family, cache) for family in FAMILIES for cache in CACHES] + [(family, BLOCKS) for family in BLOCK_CAUSAL]


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(2, MASK, length))


UNEQUAL = [Request(prompt(1, 5)), Request(prompt(2, 23)), Request(prompt(3, 11))]


def options_for(family: str, cache: str, decoder: str = "threshold", **changes: Any) -> GenerationOptions:
    values: dict[str, Any] = {
        "gen_length": 32,
        "block_length": BLOCK[family],
        "cache": cache,
        "decoder": decoder,
        "schedule": NOTHING if cache == BLOCKS else GAUSSIAN,
        "threshold": 0.6,
        "factor": 1.5,
        "steps": 16,
        "seed": 3,
        "early_termination": False,
    }
    return GenerationOptions(**(values | changes))


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint_of(family)`, written once for each family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            raw = raw_config(family, layers=3)
            made[family] = write_checkpoint(tmp_path_factory.mktemp(family), raw, random_weights(raw))
        return made[family]

    return make


@pytest.fixture(scope="module")
def engines(checkpoint_of: Callable[[str], Path]) -> Iterator[Callable[[str, bool], tuple[Engine, Engine]]]:
    """`engines(family, compiled)`: the engine and the reference, opened once."""
    opened: dict[tuple[str, str], Any] = {}

    def open_both(family: str, compiled: bool) -> tuple[Engine, Engine]:
        openers = {str(compiled): lambda path: compiled_engine(path, compiled), "reference": torch_engine}
        for name, opener in openers.items():
            if (family, name) not in opened:
                opened[family, name] = opener(checkpoint_of(family))
        return opened[family, str(compiled)], opened[family, "reference"]

    yield open_both
    for engine in opened.values():
        engine.close()


def assert_same(ours: list[Decoded], theirs: list[Decoded]) -> None:
    """Assert equal tokens, passes and order, and confidences equal within the rounding of float32 sums."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.nfe, a.committed) == (b.tokens, b.nfe, b.committed)
        assert a.confidence == pytest.approx(b.confidence, rel=1e-4)


@pytest.mark.parametrize(("family", "cache"), MODES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_regions_decode_as_the_reference(engines: Any, family: str, cache: str, decoder: str) -> None:
    """Fails if a cut, a merged product, a bucket or a slot changes a token or its pass."""
    ours, reference = engines(family, False)
    options = options_for(family, cache, decoder)
    assert_same(run(ours, UNEQUAL, options), run(reference, UNEQUAL, options))


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_and_filtered_tokens_are_those_of_the_reference(engines: Any, family: str) -> None:
    """Fails if `decide` gets other random numbers, another sequence's options or other logits."""
    ours, reference = engines(family, False)
    options = options_for(family, "dual", temperature=0.8, top_k=20, schedule=Full())
    requests = [Request(row.prompt_ids, seed=seed) for seed, row in enumerate(UNEQUAL)]
    assert_same(run(ours, requests, options), run(reference, requests, options))


@pytest.mark.parametrize("family", [*FAMILIES, *BLOCK_CAUSAL])
def test_inductor_compiles_three_graphs_for_all_layers_and_shapes(engines: Any, family: str) -> None:
    """Fails if a graph breaks, a layer or a shape is compiled separately, or compiled code gives other tokens."""
    ours, reference = engines(family, True)
    before = counters["stats"]["unique_graphs"]
    for cache in ("prefix", "dual") if family in FAMILIES else (BLOCKS,):
        options = options_for(family, cache)
        assert_same(run(ours, UNEQUAL, options), run(reference, UNEQUAL, options))
        assert_same(run(ours, UNEQUAL[1:2], options), run(reference, UNEQUAL[1:2], options))
    assert counters["stats"]["unique_graphs"] - before == 3
