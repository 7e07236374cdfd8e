"""Share of a decode that is not spent inside `Engine.step`.

    python benchmarks/loop_overhead.py --bundle bundles/tiny

Cache modes take turns. Goal: at most 5 % of a step of the embedded model, in the median.
"""

from functools import partial
from pathlib import Path
from typing import Any

import click

import dpad
import measure
from dpad.runtime.cache import CACHES

GOAL = 0.05


def measured(model: dpad.DiffusionModel, threads: int, rounds: int, gen_length: int) -> list[dict[str, Any]]:
    """Each cache mode: milliseconds a step, and the seconds around the steps as a share of those inside."""

    decode = partial(model.generate, "Count from 3 to 9.", gen_length=gen_length, decoder="fixed")
    calls = {cache: partial(decode, cache=cache, early_termination=False) for cache in CACHES}
    found = measure.interleaved(calls, rounds)
    results = []
    for cache, decodes in found.items():
        inside = [one.timings.refresh + one.timings.denoise for one in decodes]
        outside = [one.timings.loop for one in decodes]
        overhead = measure.paired(outside, inside)
        results.append(
            {
                "threads": threads,
                "cache": cache,
                "step_ms": measure.spread([1e3 * seconds / one.nfe for seconds, one in zip(inside, decodes)]),
                "overhead": overhead,
                "overhead_worst": measure.digits(max(a / b for a, b in zip(outside, inside))),
            }
        )
        measure.say(f"{threads} thread(s), {cache}: {overhead['median']:.1%} of a step outside the engine")
    return results


@click.command(cls=measure.Benchmark)
@measure.bundle_option
@click.option("--gen-length", default=128, show_default=True, help="New tokens, one committed a step.")
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, measure.CORES), show_default=True)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Decodes of each mode.")
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
        "model": dpad.Bundle.open(bundle, hashes=False).manifest.name,
        "engine": engine,
        "dtype": dtype,
        "rounds": rounds,
        "gen_length": gen_length,
        "goal": {"below": GOAL, "met": all(found["overhead"]["median"] < GOAL for found in results)},
        "results": results,
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
