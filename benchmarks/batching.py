"""Requests of unequal prompt lengths decoded together, against one by one.

    python benchmarks/batching.py --out docs/benchmarks/batching.json

The same word problems, behind 0 to 4 worked examples in turn, are decoded in batches of each size;
batches of 1 are one by one. Sizes take turns in one process. A batch makes every row as long as its
longest, and a row whose block is finished waits for the others: both are counted. A batch must give
each row the tokens that it gets alone; the exit status is 1 if one token differs.
"""

import random
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

import dpad
import measure
from dpad.models.training.corpus import few_shot, heldout, sample
from dpad.models.training.problems import PROBLEMS
from dpad.runtime.cache import CACHES
from dpad.runtime.engines.base import StepInputs

SHOTS = 5  # 0 to 4 worked examples, in turn
ENGINE = "onnxruntime-cpu"


def prompts(count: int, seed: int) -> list[str]:
    """Held-out word problems behind 0 to 4 worked examples of the training split."""
    rng = random.Random(seed)
    kinds = list(PROBLEMS)
    return [
        few_shot([sample(rng, "train", rng.choice(kinds)) for _ in range(index % SHOTS)], problem.question)
        for index, problem in enumerate(heldout(seed, count))
    ]


@dataclass
class Padding:
    """Counts rows of steps: all that were computed, and those that stood for a token of a canvas."""

    query_rows: int = 0
    filled_rows: int = 0
    canvases: int = 0

    def see(self, inputs: StepInputs) -> None:
        """Add one step."""
        self.query_rows += inputs.gather_indices.size
        self.filled_rows += int((inputs.gather_indices >= 0).sum())
        self.canvases += len(inputs.canvas)


def decode(
    model: dpad.DiffusionModel, requests: list[dpad.Request], size: int, options: dict[str, Any]
) -> tuple[float, list[dpad.Generation]]:
    """Seconds, and the results in order, of `requests` in batches of `size`."""
    began = time.perf_counter()
    results = []
    for first in range(0, len(requests), size):
        results += model.generate_batch(requests[first : first + size], **options)
    return time.perf_counter() - began, results


def waste(
    model: dpad.DiffusionModel, requests: list[dpad.Request], size: int, options: dict[str, Any]
) -> dict[str, float]:
    """Shares of what batches of `size` compute: query rows that only pad, and canvases that wait for others."""
    padding, engine = Padding(), model.engine
    model.engine = measure.Watched(engine, padding.see)
    try:
        _, results = decode(model, requests, size, options)
    finally:
        model.engine = engine
    worked = sum(result.nfe for result in results)
    return {
        "padded_query_rows": measure.digits(1 - padding.filled_rows / padding.query_rows),
        "waiting_canvases": measure.digits(1 - worked / padding.canvases),
    }


def mismatches(results: list[dpad.Generation], alone: list[dpad.Generation]) -> int:
    """Canvas tokens that differ."""
    return sum(int((one.canvas != other.canvas).sum()) for one, other in zip(results, alone, strict=True))


@click.command(cls=measure.Benchmark)
@measure.own_bundle
@click.option(
    "--size",
    "sizes",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 2, 4, 8, 16),
    show_default=True,
    help="Requests a batch; 1 is always measured; repeat for several.",
)
@click.option(
    "--requests",
    "count",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Prompts, the same for every size.",
)
@click.option("--gen-length", default=128, show_default=True, help="New tokens of each canvas.")
@click.option("--cache", default="prefix", show_default=True, type=click.Choice(CACHES))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the prompts and the dropout.")
@measure.threads_option
@measure.rounds_option
@measure.out_option
def main(
    bundle: Path | None,
    model: str,
    sizes: tuple[int, ...],
    count: int,
    gen_length: int,
    cache: str,
    seed: int,
    threads: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Decode word problems of unequal length in batches of each SIZE."""
    sizes = tuple(sorted({1, *sizes}))
    options = {"gen_length": gen_length, "cache": cache, "seed": seed}
    with measure.bundle_for(bundle, model, max(sizes), max_length=4096) as directory:
        with dpad.load(directory, engine=ENGINE, threads=threads) as opened:
            requests = [opened.request(prompt) for prompt in prompts(count, seed)]
            calls = {str(size): partial(decode, opened, requests, size, options) for size in sizes}
            measure.say(f"{count} requests in batches of {', '.join(calls)}, {rounds + 1} rounds")
            found = measure.interleaved(calls, rounds)
            wasted = {size: waste(opened, requests, size, options) for size in sizes}
        facts = measure.model_facts(directory)
    alone = found["1"][0][1]
    tokens = sum(len(result.token_ids) for result in alone)
    seconds = {size: [taken for taken, _ in found[str(size)]] for size in sizes}
    batches: list[dict[str, Any]] = [
        {
            "size": size,
            "tokens_per_s": measure.spread([tokens / taken for taken in seconds[size]]),
            "s_per_sample": measure.spread([taken / count for taken in seconds[size]]),
            "times_one_by_one": measure.paired(seconds[1], seconds[size]),
            "mismatches": sum(mismatches(results, alone) for _, results in found[str(size)]),
            **wasted[size],
        }
        for size in sizes
    ]
    differ = sum(batch["mismatches"] for batch in batches)
    document = {
        "benchmark": "batching",
        "machine": measure.machine(),
        **facts,
        "engine": ENGINE,
        "dtype": "float32",
        "threads": threads,
        "rounds": rounds,
        **options,
        "prompt_tokens": [len(request.prompt_ids) for request in requests],
        "tokens": tokens,
        "batches": batches,
        "mismatches": differ,
    }
    measure.publish(document, out)
    if differ:
        measure.say(f"{differ} tokens differ between a batch and the same requests alone")
        sys.exit(1)


if __name__ == "__main__":
    main()
