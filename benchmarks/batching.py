"""Measures the cost of a forward pass by its shape, and unequal requests decoded together and one by one.

    python benchmarks/batching.py --out docs/benchmarks/batching.json

Steps of B sequences with Q query rows and K attended slots each are timed, and fixed + row · B · Q + slot · B · K is
fitted to the times. `pass_rows` = fixed / row is the value for `Engine.pass_rows`; row / slot is the number of slots
that cost as much as a row.

Then word problems with 0 to 4 worked examples are decoded with several numbers of requests running together; 1 means
one by one. Each number is tried with the engine's own `pass_rows` and with others: with 0 only sequences of equal shape
share a pass, with a million all that fit do. The variants take turns in one process. Every request must get the tokens
that it gets alone; the exit status is 1 if one token differs.
"""

import random
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

import dpad
import measure
from dpad.models.training.corpus import few_shot, heldout, sample
from dpad.models.training.problems import PROBLEMS
from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.scheduler import Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs

SHOTS = 5  # 0 to 4 worked examples, in turn
ENGINE = "onnxruntime-cpu"
QUERIES, CACHED = (16, 32, 64, 128, 256), (0, 256, 1024)
PAUSE = 0.01  # seconds until the threads of the previous contender sleep


def prompts(count: int, seed: int) -> list[str]:
    """Held-out word problems after 0 to 4 worked examples of the training split."""
    rng = random.Random(seed)
    kinds = list(PROBLEMS)
    return [
        few_shot([sample(rng, "train", rng.choice(kinds)) for _ in range(index % SHOTS)], problem.question)
        for index, problem in enumerate(heldout(seed, count))
    ]


class Padding(measure.Watched):
    """Counts the rows of steps: all computed rows, and those that are not padding."""

    def __init__(self, engine: Engine, pass_rows: int) -> None:
        super().__init__(engine, self._count)
        self.pass_rows = pass_rows
        self.rows = self.filled = self.passes = self.sequences = 0

    def _count(self, inputs: StepInputs) -> None:
        self.rows += inputs.gather_indices.size
        self.filled += int((inputs.gather_indices >= 0).sum())
        self.passes += 1
        self.sequences += len(inputs.canvas)

    def facts(self) -> dict[str, float]:
        """The number of passes, the sequences per pass, and the share of query rows that are padding."""
        return {
            "passes": self.passes,
            "sequences_a_pass": measure.digits(self.sequences / self.passes),
            "padded_query_rows": measure.digits(1 - self.filled / self.rows),
        }


Decoded = tuple[float, list[Sequence], dict[str, float]]


def decode(
    engine: Engine, requests: list[dpad.Request], options: GenerationOptions, running: int, pass_rows: int
) -> Decoded:
    """Decode with `running` requests together; returns seconds, finished sequences and facts about the passes."""
    watched = Padding(engine, pass_rows)
    sequences = [Sequence(request, options, engine.contract, index) for index, request in enumerate(requests)]
    began = time.perf_counter()
    scheduler = Scheduler(watched, running)
    scheduler.add(*sequences)
    while scheduler.busy:
        for outcome in scheduler.step():
            if outcome.error is not None:
                raise outcome.error
    return time.perf_counter() - began, sequences, watched.facts()


def mismatches(results: list[Sequence], alone: list[Sequence]) -> int:
    """The number of canvas tokens that differ."""
    return sum(int((one.canvas != other.canvas).sum()) for one, other in zip(results, alone, strict=True))


def step_of(engine: Engine, batch: int, queries: int, cached: int) -> StepInputs:
    """The inputs of a step whose sequences attend `cached` slots each."""
    rng, contract = np.random.default_rng(0), engine.contract
    length, rows = queries + cached, min(queries, contract.block_length)
    slots = 1 + np.arange(batch * cached).reshape(batch, cached)
    return StepInputs(
        canvas=rng.integers(contract.vocab_size, size=(batch, length)),
        gather_indices=np.tile(np.arange(cached, length), (batch, 1)),
        cache_indices=slots,
        decode_rows=np.tile(np.arange(rows), (batch, 1)),
    )


def steps(engine: Engine, batches: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a step for every shape that fits the pool and the contract."""
    shapes = {
        f"{batch} {queries} {cached}": measure.timed(partial(engine.step, step_of(engine, *shape)), 3, PAUSE)
        for shape in product(batches, QUERIES, CACHED)
        for batch, queries, cached in [shape]
        if queries + cached <= engine.contract.max_length and batch * cached <= engine.slots.most
    }
    found = []
    for name, seconds in measure.interleaved(shapes, rounds).items():
        batch, queries, cached = map(int, name.split())
        spread = measure.spread([1e3 * one for one in seconds])
        found.append({"batch": batch, "queries": queries, "cached": cached, "step_ms": spread})
    return found


def fit(found: list[dict[str, Any]]) -> dict[str, float]:
    """Fit fixed + row · B · Q + slot · B · K, in milliseconds and not negative, by least squares of relative errors."""
    shapes = np.array([(1, one["batch"] * one["queries"], one["batch"] * one["cached"]) for one in found], dtype=float)
    taken = np.array([one["step_ms"]["median"] for one in found])
    weighed, used = shapes / taken[:, None], [0, 1, 2]
    while (costs := np.linalg.lstsq(weighed[:, used], np.ones(len(taken)), rcond=None)[0]).min() < 0:
        used.pop(int(costs.argmin()))
    fixed, row, slot = (costs[used.index(term)] if term in used else 0.0 for term in range(3))
    off = np.abs(shapes @ (fixed, row, slot) / taken - 1)
    return {
        "fixed_ms": measure.digits(fixed),
        "row_us": measure.digits(1e3 * row),
        "slot_us": measure.digits(1e3 * slot),
        "pass_rows": round(fixed / row),
        "slots_a_row": round(row / slot) if slot else 0,
        "off_median": measure.digits(float(np.median(off))),
        "off_most": measure.digits(float(off.max())),
    }


def ways(own: int, sizes: tuple[int, ...], widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(running together, pass_rows) of all variants: one by one, then every size with each value of pass_rows."""
    return [(1, own), *product((size for size in sizes if size > 1), dict.fromkeys((own, *widths)))]


def together(
    engine: Engine, requests: list[dpad.Request], options: GenerationOptions, tried: list[tuple[int, int]], rounds: int
) -> list[dict[str, Any]]:
    """Measure all variants in turn on the same requests; the first variant is one by one."""
    calls = {f"{size} {width}": partial(decode, engine, requests, options, size, width) for size, width in tried}
    measure.say(f"{len(requests)} requests in {len(calls)} ways, {rounds + 1} rounds")
    found = measure.interleaved(calls, rounds)
    one, *_ = found.values()
    alone, before = one[0][1], [seconds for seconds, _, _ in one]
    tokens = sum(len(sequence.token_ids()) for sequence in alone)
    results = []
    for (size, width), runs in zip(tried, found.values(), strict=True):
        seconds = [taken for taken, _, _ in runs]
        facts: dict[str, Any] = {
            "running": size,
            "pass_rows": width,
            "tokens": tokens,
            "tokens_per_s": measure.spread([tokens / taken for taken in seconds]),
            "s_per_sample": measure.spread([taken / len(requests) for taken in seconds]),
            "times_one_by_one": measure.paired(before, seconds),
            "mismatches": sum(mismatches(sequences, alone) for _, sequences, _ in runs),
        }
        results.append(facts | runs[0][2])
        measure.say(f"{size} together, pass_rows {width}: {facts['times_one_by_one']['median']:g} times one by one")
    return results


@click.command(cls=measure.Benchmark)
@measure.own_bundle
@click.option("--size", "sizes", multiple=True, type=click.IntRange(1), default=(2, 4, 8, 16), show_default=True)
@click.option("--width", "widths", multiple=True, type=int, default=(0, 64, 10**6), show_default=True)
@click.option("--requests", "count", default=16, show_default=True, type=click.IntRange(1))
@click.option("--gen-length", default=128, show_default=True, help="New tokens per request.")
@click.option("--cache", default="prefix", show_default=True, type=click.Choice(CACHES))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of prompts and dropout.")
@measure.threads_option
@measure.rounds_option
@measure.out_option
def main(
    bundle: Path | None,
    model: str,
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
    count: int,
    gen_length: int,
    cache: str,
    seed: int,
    threads: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Time steps by their shape, and decode word problems with each SIZE together, at each WIDTH of `pass_rows`."""
    options: dict[str, Any] = {"gen_length": gen_length, "cache": cache, "seed": seed}
    with measure.bundle_for(bundle, model, max_batch=8, max_length=4096) as directory:
        with dpad.load(directory, engine=ENGINE, threads=threads) as opened:
            engine = opened.engine
            batches = tuple(size for size in (1, 2, 4, 8) if size <= engine.contract.max_batch)
            shapes = steps(engine, batches, rounds)
            requests = [opened.request(prompt) for prompt in prompts(count, seed)]
            tried = ways(engine.pass_rows, sizes, widths)
            found = together(engine, requests, opened.options(**options), tried, rounds)
            limit = engine.contract.max_batch
        facts = measure.model_facts(directory)
    differ = sum(one["mismatches"] for one in found)
    document = {
        "benchmark": "batching",
        "machine": measure.machine(),
        **facts,
        "engine": ENGINE,
        "dtype": "float32",
        "threads": threads,
        "rounds": rounds,
        **options,
        "pass_limit": limit,
        "prompt_tokens": [len(request.prompt_ids) for request in requests],
        "steps": shapes,
        "fit": fit(shapes),
        "ways": found,
        "mismatches": differ,
    }
    measure.publish(document, out)
    if differ:
        measure.say(f"{differ} tokens differ between requests together and the same alone")
        sys.exit(1)


if __name__ == "__main__":
    main()
