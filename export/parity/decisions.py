"""Compares an engine's decisions with those that eager PyTorch takes from the same logits.

    compare_decisions(engine, feeds, seed=0)["passed"]

Filters and banned tokens are random for each sequence; the logits come from the engine's steps.
"""

from itertools import product
from typing import Any

import numpy as np
import torch

from dpad.export.parity.feeds import Feed
from dpad.models.decide import decide
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import Sampling, StepInputs

_TEMPERATURES = (0.0, 1.0)
_ALLOWED = 1e-3  # relative difference; float32 sums over the vocabulary depend on the order
_OTHERS = 0.01  # share of rows; a uniform number may fall between two tokens, a token on the edge of a filter
_NOTHING = 1e-9  # added to the reference, so that differences of values near zero do not count


def compare_decisions(engine: Engine, feeds: list[tuple[str, Feed]], seed: int) -> dict[str, Any]:
    """Count the rows with another token, and measure the largest relative difference of each number in the others."""
    rng = np.random.default_rng(seed)
    rows = others = 0
    worst: dict[str, float] = {}
    own = [feed for mode, feed in feeds if mode == "none"]  # the other modes need a feed's cache in the pool
    for feed, temperature in product(own, _TEMPERATURES):
        canvas, gather, cached, decoded = list(feed.values())[:4]
        sampling = random_sampling(decoded.shape, engine.contract.vocab_size, temperature, rng)
        outputs = engine.step(StepInputs(canvas, gather, cached, decoded, None, sampling, want_logits=True))
        given = {name: torch.from_numpy(array) for name, array in vars(sampling).items()}
        wanted = decide(torch.from_numpy(outputs.logits), **given, tempers=engine.contract.tempers_confidence)
        found = [getattr(outputs.decisions, spec.name) for spec in engine.contract.decide_outputs()]
        same = found[0] == wanted[0].numpy()
        rows, others = rows + same.size, others + int((~same).sum())
        for spec, ours, theirs in zip(engine.contract.decide_outputs()[1:], found[1:], wanted[1:]):
            worst[spec.name] = max(worst.get(spec.name, 0.0), _difference(ours[same], theirs.numpy()[same]))
    passed = others <= _OTHERS * rows and all(difference <= _ALLOWED for difference in worst.values())
    return {"rows": rows, "other_tokens": others, "differences": worst, "allowed": _ALLOWED, "passed": passed}


def random_sampling(shape: tuple[int, ...], vocabulary: int, temperature: float, rng: np.random.Generator) -> Sampling:
    """Random sampling inputs for rows of `shape` [B, R]."""
    batch = shape[0]
    return Sampling(
        uniform=rng.random(shape, dtype=np.float32),
        temperature=np.full(batch, temperature, np.float32),
        top_k=rng.choice([0, 1, vocabulary // 3], batch),
        top_p=rng.choice(np.array([1, 0.9, 0.3], np.float32), batch),
        banned=rng.integers(-1, vocabulary, batch),
    )


def _difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest relative difference; it is infinite for a NaN, and zero for two equal infinities."""
    with np.errstate(invalid="ignore"):
        off = np.abs(ours.astype(np.float64) - theirs) / (np.abs(theirs) + _NOTHING)
    return float(np.nan_to_num(np.where(ours == theirs, 0.0, off), nan=np.inf).max(initial=0.0))
