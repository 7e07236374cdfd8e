"""Milliseconds that the choice of tokens takes beside a step, at the vocabularies of full-size models.

    python benchmarks/sampling.py

Between two steps the loop turns what the engine gave into tokens and an order. The usual decoders get three
numbers a row for it; a temperature, filters and Dream's orders need every logit of every masked row. Logits are made
up: a bell curve of the spread that language models have, and in each row twenty tokens that stand out of it, in
some rows one of them by far.
"""

from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import measure
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.sampler import choose
from dpad.runtime.engines.base import StepOutputs

VOCABULARIES = {"llada": 126464, "dream": 152064}
SETTINGS: dict[str, dict[str, Any]] = {
    "threshold": {},
    "entropy": {"decoder": "entropy"},
    "margin": {"decoder": "margin"},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_k 50": {"temperature": 1.0, "top_k": 50},
    "entropy, temperature 0.2, top_p 0.95": {"decoder": "entropy", "temperature": 0.2, "top_p": 0.95},  # Dream's card
}


def outputs_of(rows: int, vocabulary: int, seed: int) -> StepOutputs:
    """Outputs of a step with these logits, for one sequence."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.5, (1, rows, vocabulary)).astype(np.float32)
    for row in logits[0]:
        row[rng.choice(vocabulary, 20, replace=False)] += rng.uniform(5, 15) * rng.random(20, dtype=np.float32)
    tokens = logits.argmax(axis=-1)
    best = logits.max(axis=-1, keepdims=True)
    odds = np.exp(logits - best, dtype=np.float64).sum(axis=-1) - 1
    return StepOutputs(tokens, (1 / (1 + odds)).astype(np.float32), odds.astype(np.float32), logits)


@click.command(cls=measure.Benchmark)
@click.option("--rows", type=click.IntRange(1), default=32, show_default=True, help="Masks of the block.")
@measure.rounds_option
@measure.out_option
def main(rows: int, rounds: int, out: Path | None) -> None:
    """Measure the choice of tokens."""
    results = []
    for family, vocabulary in VOCABULARIES.items():
        outputs = outputs_of(rows, vocabulary, seed=0)
        tempered = family == "dream"
        calls = {}
        for name, setting in SETTINGS.items():
            options, rng = GenerationOptions(**setting), [np.random.default_rng(0)]
            call = partial(choose, outputs, options, rng, tempered=tempered)
            calls[name] = measure.timed(call, repeat=3)
        for name, seconds in measure.interleaved(calls, rounds).items():
            taken = measure.spread([1e3 * one for one in seconds])
            results.append({"family": family, "vocabulary": vocabulary, "setting": name, "choose_ms": taken})
            measure.say(f"{family}, {name}: {taken['median']:g} ms")
    facts = {"machine": measure.machine(), "model": " and ".join(VOCABULARIES), "rows": rows, "rounds": rounds}
    measure.publish({"benchmark": "sampling", **facts, "results": results}, out)


if __name__ == "__main__":
    main()
