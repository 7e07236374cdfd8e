"""Share of a decode that is not spent inside `Engine.step`.

    python benchmarks/loop_overhead.py --bundle bundles/tiny

Cache modes take turns. Goal: at most 5 % of a step of the embedded model, in the median. The same decode
with its outputs replayed, so that no step sweeps the processor's caches, says how much of that is work.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

import dpad
import measure
from dpad.runtime.cache import CACHES
from dpad.runtime.engines.base import Engine, StepInputs, StepOutputs

GOAL = 0.05

Decode = Callable[[dpad.DiffusionModel], dpad.Generation]


class Replay(measure.Watched):
    """Keeps the outputs of a decode, and after `rewind` gives them again without running the engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, lambda inputs: None)
        self._kept: list[StepOutputs] = []
        self._turn: int | None = None

    def rewind(self) -> None:
        """Begin, or begin again, to replay."""
        self._turn = 0

    def step(self, inputs: StepInputs, cache: Any) -> StepOutputs:
        """The engine's outputs, or those of the same step of the kept decode."""
        if self._turn is None:
            self._kept.append(super().step(inputs, cache))
            return self._kept[-1]
        self._turn += 1
        return self._kept[self._turn - 1]


def alone(model: dpad.DiffusionModel, decode: Decode, rounds: int) -> list[float]:
    """Microseconds a step of the loop, in each of `rounds` decodes whose outputs are replayed."""
    replay = Replay(model.engine)
    stand_in = dpad.DiffusionModel(replay, model.codec, model.presets)
    decode(stand_in)
    found = []
    for _ in range(rounds):
        replay.rewind()
        result = decode(stand_in)
        found.append(1e6 * result.timings.loop / result.nfe)
    return found


def measured(model: dpad.DiffusionModel, threads: int, rounds: int, gen_length: int) -> list[dict[str, Any]]:
    """Each cache mode: milliseconds a step, and the seconds around the steps, also as a share of those inside."""

    def decode(model: dpad.DiffusionModel, cache: str) -> dpad.Generation:
        options = {"decoder": "fixed", "early_termination": False}
        return model.generate("Count from 3 to 9.", gen_length=gen_length, cache=cache, **options)

    found = measure.interleaved({cache: partial(decode, model, cache) for cache in CACHES}, rounds)
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
                "loop_us": measure.spread([1e6 * seconds / one.nfe for seconds, one in zip(outside, decodes)]),
                "loop_alone_us": measure.spread(alone(model, partial(decode, cache=cache), rounds)),
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
        **measure.model_facts(bundle),
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
