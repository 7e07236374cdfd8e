"""Measures the share of a decode that is spent outside `Engine.step`.

    python benchmarks/loop_overhead.py --bundle bundles/tiny

Cache modes and decoders take turns. Goal: at most 5 % of a step of the embedded model in the median, and 15 % with
temperature, filters, or orders that need more than the likeliest token. The same decode is also run with replayed
outputs; without steps that evict the processor's caches, this measures the loop's own work. `loop` is `Timings.loop`
and `Timings.wait` of a request that is alone. `outside` is the whole call without tokenization and steps; it includes
the hand-over between threads.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

import dpad
import measure
from dpad.runtime.cache import CACHES
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs, StepOutputs

GOAL, SAMPLING_GOAL = 0.05, 0.15
SAMPLING: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_k 50, top_p 0.95": {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    "entropy": {"decoder": "entropy"},
    "margin": {"decoder": "margin"},
}
WAYS: dict[str, dict[str, Any]] = {cache: {"cache": cache} for cache in CACHES}
WAYS |= {name: {"cache": "prefix", **setting} for name, setting in SAMPLING.items()}


class Replay(measure.Watched):
    """Keeps the outputs of a decode, and after `rewind` returns them again without running the engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._kept: list[StepOutputs] = []
        self._turn: int | None = None

    def rewind(self) -> None:
        """Start the replay from the beginning."""
        self._turn = 0

    def _step(self, inputs: StepInputs) -> StepOutputs:
        """The engine's outputs, or in a replay those of the same step of the kept decode."""
        if self._turn is None:
            self._kept.append(super()._step(inputs))
            return self._kept[-1]
        self._turn += 1
        return self._kept[self._turn - 1]


class Taken(NamedTuple):
    """Seconds of one decode inside the engine, in the loop by its own timings, and outside the engine; its passes."""

    inside: float
    loop: float
    outside: float
    passes: int


def decode(model: dpad.DiffusionModel, engine: measure.Watched, way: str, gen_length: int) -> Taken:
    """Time one decode with `model`, whose engine is `engine`."""
    options: dict[str, Any] = {"decoder": "fixed", "early_termination": False, "gen_length": gen_length, **WAYS[way]}
    inside, began = engine.seconds, time.perf_counter()
    result = model.generate("Count from 3 to 9.", **options)
    taken, inside = time.perf_counter() - began, engine.seconds - inside
    timings = result.timings
    return Taken(inside, timings.loop + timings.wait, taken - timings.encode - inside, result.nfe)


def alone(model: dpad.DiffusionModel, way: str, gen_length: int, rounds: int) -> list[float]:
    """Microseconds per step outside the engine, in each of `rounds` decodes with replayed outputs."""
    replay = Replay(model.engine)
    again: Callable[[], Taken] = partial(decode, measure.over(model, replay), replay, way, gen_length)
    again()
    found = []
    for _ in range(rounds):
        replay.rewind()
        taken = again()
        found.append(1e6 * taken.outside / taken.passes)
    return found


def measured(model: dpad.DiffusionModel, threads: int, rounds: int, gen_length: int) -> list[dict[str, Any]]:
    """For each way: milliseconds per step, and the time outside the steps, also as a share of that inside."""
    engine = measure.Watched(model.engine)
    watched = measure.over(model, engine)
    found = measure.interleaved({way: partial(decode, watched, engine, way, gen_length) for way in WAYS}, rounds)
    results = []
    for way, decodes in found.items():
        inside, outside = [one.inside for one in decodes], [one.outside for one in decodes]
        overhead = measure.paired(outside, inside)
        results.append(
            {
                "threads": threads,
                "way": way,
                "below": SAMPLING_GOAL if way in SAMPLING else GOAL,
                "step_ms": measure.spread([1e3 * one.inside / one.passes for one in decodes]),
                "loop_us": measure.spread([1e6 * one.loop / one.passes for one in decodes]),
                "outside_us": measure.spread([1e6 * one.outside / one.passes for one in decodes]),
                "outside_alone_us": measure.spread(alone(model, way, gen_length, rounds)),
                "overhead": overhead,
                "overhead_worst": measure.digits(max(a / b for a, b in zip(outside, inside))),
            }
        )
        measure.say(f"{threads} thread(s), {way}: {overhead['median']:.1%} of a step outside the engine")
    return results


@click.command(cls=measure.Benchmark)
@measure.bundle_option
@click.option("--gen-length", default=128, show_default=True, help="New tokens; each step commits one.")
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, measure.CORES), show_default=True)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Decodes of each way.")
@measure.out_option
def main(bundle: Path, gen_length: int, threads: tuple[int, ...], rounds: int, out: Path | None) -> None:
    """Measure the decode loop's overhead."""
    results = []
    for count in dict.fromkeys(threads):
        with dpad.load(bundle, threads=count) as model:
            results += measured(model, count, rounds, gen_length)
            engine, dtype = model.engine.name, model.engine.dtype
    document = {
        "benchmark": "loop_overhead",
        "machine": measure.machine(),
        **measure.model_facts(bundle),
        "engine": engine,
        "dtype": dtype,
        "rounds": rounds,
        "gen_length": gen_length,
        "goal": {"met": all(found["overhead"]["median"] <= found["below"] for found in results)},
        "results": results,
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
