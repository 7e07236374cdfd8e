"""Measures the scheduler: its passes compared with a perfect packing, waits of short requests, and its own time.

    python benchmarks/scheduling.py --bundle bundles/tiny --out docs/benchmarks/scheduling.json

Passes: 16 requests arrive at random, and a pass takes at most 8. Decodes are recorded one by one (word problems and
long outputs of the bundle, and LLaDA-8B's shapes with random decisions). They are then scheduled repeatedly over an
engine that answers at once; this is possible because the shapes of a decode do not depend on other sequences in its
passes. At load 1 requests arrive just fast enough to fill passes of 8; at load `inf` all arrive at once. The perfect
packing knows all lengths and lets any shapes share a pass. `gpu` is an engine whose passes have a fixed cost of 300
rows (`Engine.pass_rows`); in `cpu` there is no fixed cost, so padding only wastes time. Goal: on `gpu`, at most 1.15
times the perfect packing, in the median.

Waits: waits of short requests beside long ones, in passes, and in seconds for a model with 20 us per query row.

Host: microseconds per pass with LLaDA-8B's contract and an engine that answers at once.
"""

import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

import dpad
import measure
from dpad.evaluation.tasks import long, problems
from dpad.runtime.cache import CACHES
from dpad.runtime.decoding import scheduler
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.turns import PATIENCE
from simulation import LENGTH, NullEngine, Trace, perfect, record, simulate

GOAL = 1.15
REQUESTS, LIMIT = 16, 8
LOADS = (0.5, 1.0, 2.0, float("inf"))
ENGINES = {"gpu": 300, "cpu": 0}  # pass_rows of GpuEngine, and of an engine without fixed cost
OWN = scheduler.RUNNING * LIMIT  # the scheduler's default number of sequences that run together
RUNNING = tuple(dict.fromkeys((LIMIT, OWN, 8 * LIMIT)))
TOGETHER = (1, 8, 32)
HOST: dict[str, dict[str, Any]] = {
    "threshold, dual": {"cache": "dual"},
    "threshold, prefix": {"cache": "prefix"},
    "temperature 1, top_p 0.95, prefix": {"cache": "prefix", "temperature": 1.0, "top_p": 0.95},
}


def tiny_traces(model: dpad.DiffusionModel, count: int) -> dict[str, list[Trace]]:
    """Recorded decodes of `count` word problems and half as many long outputs, with one setting and with several."""
    asked = [one for shots in range(4) for one in problems(-(-count // 4), shots, shots).samples]
    requests = [model.request(one.prompt) for one in [*asked, *long(count // 2).samples]]
    ways = [model.options(gen_length=256, cache=cache) for cache in CACHES]
    ways.append(model.options(gen_length=256, threshold=0.995, early_termination=False))
    one = record(model.engine, [(request, model.options(gen_length=256)) for request in requests])
    mixed = [(request, ways[index % len(ways)]) for index, request in enumerate(requests)]
    return {"word problems": one, "mixed options": record(model.engine, mixed)}


def large_traces(count: int) -> list[Trace]:
    """Decodes with LLaDA-8B's shapes: prompts of 60 to 760 tokens, up to 8 blocks of about 15 passes."""
    engine, rng = NullEngine(1, 0, end=0.01), np.random.default_rng(0)
    options = GenerationOptions(gen_length=256)
    prompts = rng.integers(60, LENGTH - 260, count)
    return record(engine, [(Request((7,) * int(size), seed=index), options) for index, size in enumerate(prompts)])


def packed(
    traces: list[Trace], load: float, pass_rows: int, running: int, seeds: int
) -> tuple[list[float], list[int], list[float]]:
    """For each seed: passes over those of the perfect packing, passes, and modelled seconds."""
    ratios, counts, seconds = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        chosen = [traces[place] for place in rng.choice(len(traces), REQUESTS)]
        lengths = [len(trace) for trace in chosen]
        arrivals = np.sort(rng.uniform(0, sum(lengths) / LIMIT / load, REQUESTS)).tolist()
        found = simulate(NullEngine(LIMIT, pass_rows), chosen, arrivals, running)
        ratios.append(found.passes / perfect(lengths, arrivals, LIMIT))
        counts.append(found.passes)
        seconds.append(found.seconds)
    return ratios, counts, seconds


def passes(workloads: dict[str, list[Trace]], seeds: int) -> list[dict[str, Any]]:
    """Results for every workload, load, engine and limit of running sequences."""
    found = []
    for name, traces in workloads.items():
        for load in LOADS:
            for engine, running in [("gpu", running) for running in RUNNING] + [("cpu", OWN)]:
                ratios, counts, seconds = packed(traces, load, ENGINES[engine], running, seeds)
                ratio = measure.spread(ratios)
                facts = {"workload": name, "load": str(load), "engine": engine, "max_running": running}
                spreads = {"passes": measure.spread(counts), "modelled_s": measure.spread(seconds), "ratio": ratio}
                found.append({**facts, **spreads, "worst": measure.digits(max(ratios))})
                measure.say(f"{name}, load {load:g}, {engine}, {running}: {ratio['median']:g}, worst {max(ratios):.3g}")
    return found


def waits(traces: list[Trace], seeds: int) -> list[dict[str, Any]]:
    """The longest wait of short requests beside long ones, by the number that run together."""
    lengths = [len(trace) for trace in traces]
    order = np.argsort(lengths)
    short, lasting = [traces[i] for i in order[: len(order) // 4]], [traces[i] for i in order[-len(order) // 4 :]]
    found = []
    for beside, running in product((0, 4, 12, 24), RUNNING):
        gaps, queued = [], []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            chosen = [lasting[i] for i in rng.integers(len(lasting), size=beside)]
            chosen += [short[i] for i in rng.integers(len(short), size=REQUESTS)]
            arrivals = [0.0] * beside + np.sort(rng.uniform(0, 60, REQUESTS)).tolist()
            done = simulate(NullEngine(LIMIT, ENGINES["gpu"]), chosen, arrivals, running)
            shorts = done.decodes[beside:]
            gaps.append(max(one.longest for one in shorts))
            queued.append(max(one.queued for one in shorts))
        bound = PATIENCE + running - 1
        facts: dict[str, Any] = {"long": beside, "short": REQUESTS, "max_running": running, "bound_passes": bound}
        for name, worst in (("running", max(gaps)), ("queued", max(queued))):
            facts |= {f"{name}_passes": worst.passes, f"{name}_s": measure.digits(worst.seconds)}
        found.append(facts)
        measure.say(
            f"beside {beside} long ones, {running} running: {facts['running_passes']}, {facts['queued_passes']}"
        )
    return found


def host(settings: dict[str, dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Microseconds per pass outside the engine's step, by the number of sequences that run together."""
    calls = {f"{count} {name}": partial(loop, count, settings[name]) for count in TOGETHER for name in settings}
    found = []
    for name, runs in measure.interleaved(calls, rounds).items():
        whole, seam, members = map(measure.spread, zip(*runs))
        count, setting = name.split(" ", 1)
        facts: dict[str, Any] = {"sequences": int(count), "setting": setting}
        found.append(facts | {"pass_us": whole, "step_us": seam, "in_a_pass": members})
        measure.say(f"{name}: {whole['median']:g} us a pass")
    return found


def loop(count: int, setting: dict[str, Any], most: int = 400) -> tuple[float, float, float]:
    """Microseconds per pass in total and inside `Engine.step`, and sequences per pass, with `count` together."""
    engine = measure.Watched(NullEngine(count, ENGINES["gpu"]))
    runner = scheduler.Scheduler(engine)
    options = GenerationOptions(gen_length=512, **setting)
    sizes = np.random.default_rng(0).integers(300, LENGTH - 512, count).tolist()
    requests = [Request((7,) * size, seed=index) for index, size in enumerate(sizes)]
    runner.add(*(Sequence(request, options, engine.contract) for request in requests))
    members, began = 0, time.perf_counter()
    while runner.busy and runner.passes < most:
        members += len(runner.step())
    taken = time.perf_counter() - began
    runner.drain()
    return 1e6 * taken / runner.passes, 1e6 * engine.seconds / runner.passes, members / runner.passes


def judged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The verdict on the goal by workload and load, with the scheduler's default limit of running sequences."""
    own = [one for one in found if one["engine"] == "gpu" and one["max_running"] == OWN]
    return [
        {"workload": one["workload"], "load": one["load"], "ratio": one["ratio"], "met": one["ratio"]["median"] <= GOAL}
        for one in own
    ]


@click.command(cls=measure.Benchmark)
@measure.bundle_option
@click.option("--decodes", default=48, show_default=True, type=click.IntRange(4), help="Number of recorded decodes.")
@click.option("--seeds", default=40, show_default=True, type=click.IntRange(1), help="Random arrivals.")
@measure.threads_option
@measure.rounds_option
@measure.out_option
def main(bundle: Path, decodes: int, seeds: int, threads: int, rounds: int, out: Path | None) -> None:
    """Simulate the scheduler, and time its own work."""
    with dpad.load(bundle, engine="onnxruntime-cpu", threads=threads) as model:
        workloads = tiny_traces(model, decodes)
        dtype = model.engine.dtype
    workloads["LLaDA-8B's shapes"] = large_traces(decodes)
    lengths = {name: measure.spread([len(trace) for trace in traces]) for name, traces in workloads.items()}
    found = passes(workloads, seeds)
    document = {
        "benchmark": "scheduling",
        "machine": measure.machine(),
        **measure.model_facts(bundle),
        "engine": "onnxruntime-cpu",
        "dtype": dtype,
        "threads": threads,
        "rounds": rounds,
        "seeds": seeds,
        "requests": REQUESTS,
        "pass_limit": LIMIT,
        "decodes": lengths,
        "goal": {"at_most": GOAL, "judged": judged(found)},
        "passes": found,
        "waits": waits(workloads["LLaDA-8B's shapes"], seeds),
        "host": host(HOST, rounds),
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
