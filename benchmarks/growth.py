"""How time and memory of a step grow with the canvas and with the batch: vanilla against DPad.

    python benchmarks/growth.py --out docs/benchmarks/growth.json

A point is a method, a canvas length (prompt and new tokens together) and a batch. Every row has a
prompt of its own of 128 random tokens. The first block of 32 tokens is decoded in 4 forward passes
that commit 8 tokens each, so that the passes behind the first decode 24, 16 and 8 masks; `step_ms`
is their median time inside `Engine.step`, in the middle of the block. `refresh_ms` is the first pass,
which fills the cache of `dpad-dual` and is like the others elsewhere. Methods take turns.

`memory_mib` is by how much the peak of a fresh process grows while it decodes this block, after it
has opened the bundle; `cache_mib` of it are, by the contract, the keys and values of the rows that
the first pass computed.

vanilla: the whole suffix, no cache. dpad: the default Gaussian dropout, no cache. dpad-dual: with
the dual cache.
"""

from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

import dpad
import measure
from dpad.runtime.contract import StepContract

METHODS: dict[str, dict[str, Any]] = {
    "vanilla": {"cache": "none", "schedule": dpad.Full()},
    "dpad": {"cache": "none"},
    "dpad-dual": {"cache": "dual"},
}
PASSES = 4  # of the first block
ENGINE = "onnxruntime-cpu"


@dataclass(frozen=True)
class Point:
    """What is decoded: canvases of `length` tokens, `prompt` of them given, `batch` together."""

    axis: str
    method: str
    length: int
    batch: int
    prompt: int


def first_block(model: dpad.DiffusionModel, point: Point) -> tuple[float, float]:
    """Seconds inside the engine: of the first pass, and the median of the others."""
    rng = np.random.default_rng(0)
    contract, new = model.engine.contract, point.length - point.prompt
    tokens = rng.choice(np.delete(np.arange(contract.vocab_size), contract.mask_token_id), (point.batch, point.prompt))
    steps = PASSES * (new // model.options().block_length)
    events = model.stream_batch(
        [dpad.Request(tuple(row)) for row in tokens.tolist()],
        **METHODS[point.method] | {"decoder": "fixed", "steps": steps, "gen_length": new},
    )
    seconds = [event.engine_seconds for event in islice(events, PASSES)]
    return seconds[0], float(np.median(seconds[1:]))


def memory(directory: Path, point: Point, threads: int) -> dict[str, Any]:
    """Of a process that decodes nothing else: growth of its peak, bytes; and the seconds of the block's passes."""
    with dpad.load(directory, engine=ENGINE, threads=threads) as model:
        shapes: list[tuple[int, int]] = []
        model.engine = measure.Watched(
            model.engine, lambda inputs: shapes.append((inputs.gather_indices.shape[1], inputs.cache_indices.shape[1]))
        )
        before = measure.peak_memory()
        first, later = first_block(model, point)
        (refreshed, _), (queries, cached) = shapes[0], shapes[-1]
        kept = 0 if METHODS[point.method]["cache"] == "none" else refreshed
        return {
            "bytes": measure.peak_memory() - before,
            "seconds": first + (PASSES - 1) * later,
            "query_rows": queries,
            "cached_rows": cached,
            "cache_bytes": cache_bytes(model.engine.contract, point.batch, kept, model.engine.dtype),
        }


def cache_bytes(contract: StepContract, batch: int, rows: int, dtype: str) -> int:
    """Keys and values of every layer for `rows` positions of `batch` canvases."""
    return 2 * contract.layers * batch * rows * contract.kv_heads * contract.head_size * np.dtype(dtype).itemsize


@dataclass
class Growth:
    """Measures points in ascending order and remembers what each method took, to predict the next."""

    directory: Path
    model: dpad.DiffusionModel
    threads: int
    rounds: int
    limit: float
    points: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    _last: dict[tuple[str, str], tuple[Point, float]] = field(default_factory=dict)

    def measure(self, points: list[Point]) -> None:
        """One length and batch by every method, those that would take too long left out."""
        alone = {point: found for point in points if (found := self._alone(point))}
        calls = {point.method: partial(first_block, self.model, point) for point in alone}
        if not calls:
            return
        seconds = measure.interleaved(calls, self.rounds)
        steps = {method: [step for _, step in found] for method, found in seconds.items()}
        for point, found in alone.items():
            times = steps[point.method]
            entry = {
                **asdict(point),
                "query_rows": found["query_rows"],
                "cached_rows": found["cached_rows"],
                "step_ms": measure.spread([1e3 * s for s in times]),
                "refresh_ms": measure.spread([1e3 * first for first, _ in seconds[point.method]]),
                "vanilla_over_this": measure.paired(steps["vanilla"], times) if "vanilla" in steps else None,
                "memory_mib": measure.digits(found["bytes"] / 2**20),
                "cache_mib": measure.digits(found["cache_bytes"] / 2**20),
            }
            self.points.append(entry)
            measure.say(f"{_name(point)}: {entry['step_ms']['median']} ms a step, {entry['memory_mib']} MiB")

    def _alone(self, point: Point) -> dict[str, Any] | None:
        """Memory and seconds in a process of its own; None, and a reason among `skipped`, if it cannot be had."""
        predicted = self._predicted(point)
        if predicted > self.limit:
            self._skip(point, f"predicted {predicted:.0f} s are over the limit of {self.limit:.0f} s")
            return None
        try:
            found = measure.in_child(memory, self.directory, point, self.threads)
        except BrokenProcessPool:
            self._skip(point, "its process was killed, most likely for its memory")
            return None
        self._last[point.axis, point.method] = point, found["seconds"]
        return found

    def _predicted(self, point: Point) -> float:
        """Seconds of all rounds at most: time grows no faster than the squared length and the batch; 0 at first."""
        if (point.axis, point.method) not in self._last:
            return 0.0
        last, seconds = self._last[point.axis, point.method]
        return seconds * (point.length / last.length) ** 2 * point.batch / last.batch * (self.rounds + 2)

    def _skip(self, point: Point, reason: str) -> None:
        self.skipped.append({**asdict(point), "reason": reason})
        measure.say(f"{_name(point)}: skipped, {reason}")


def _name(point: Point) -> str:
    return f"{point.method}, canvas {point.length}, batch {point.batch}"


@click.command(cls=measure.Benchmark)
@measure.own_bundle
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1),
    default=(256, 512, 1024, 2048, 4096, 8192),
    show_default=True,
    help="Canvas tokens at batch 1; repeat for several.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 2, 4, 8, 16),
    show_default=True,
    help="Canvases together; repeat for several.",
)
@click.option("--batch-length", default=512, show_default=True, help="Canvas tokens where the batch grows.")
@click.option("--prompt", default=128, show_default=True, type=click.IntRange(1), help="Given tokens of each canvas.")
@click.option("--limit", default=600.0, show_default=True, help="Seconds; a point predicted to take longer is skipped.")
@measure.threads_option
@measure.rounds_option
@measure.out_option
def main(
    bundle: Path | None,
    model: str,
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    batch_length: int,
    prompt: int,
    limit: float,
    threads: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Time a step and its memory over canvas LENGTHs and BATCHes, vanilla against DPad."""
    longest = max(*lengths, batch_length)
    with measure.bundle_for(bundle, model, max(batches), longest) as directory:
        with dpad.load(directory, engine=ENGINE, threads=threads) as opened:
            growth = Growth(directory, opened, threads, rounds, limit)
            for length in sorted(lengths):
                growth.measure([Point("length", method, length, 1, prompt) for method in METHODS])
            for batch in sorted(batches):
                growth.measure([Point("batch", method, batch_length, batch, prompt) for method in METHODS])
        facts = measure.model_facts(directory)
    document = {
        "benchmark": "growth",
        "machine": measure.machine(),
        **facts,
        "engine": ENGINE,
        "dtype": "float32",
        "threads": threads,
        "rounds": rounds,
        "limit_s": limit,
        "points": growth.points,
        "skipped": growth.skipped,
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
