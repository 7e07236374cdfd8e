"""End to end: the speed-up from the published decoder in eager PyTorch to the whole project, one cause at a time.

    python benchmarks/ladder.py --length 1024 --shots 1 --samples 5 --out docs/benchmarks/ladder.json

Every rung of the ladder decodes the same held-out word problems on executors that take turns: `published`
(benchmarks/published.py: eager, logits of every row, as the authors run it), `torch` (this project's step, eager),
`onnxruntime` and, if the bundle has it, ONNX Runtime in w8a8. All keep the same suffix positions, so their passes can
be compared one by one. w8a8 may choose other tokens, so only its milliseconds per pass are compared. A chain of ratios
splits the total speed-up by cause: blocks saved by early termination, passes saved by parallel decoding, rows per pass
saved by DPad and the cache, and the engine.

Vanilla decodes are long and have a fixed length, so few are timed (`--vanilla-samples`). Accuracy is strict match over
`--accuracy` held-out problems, in ONNX Runtime.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import dpad
import measure
from dpad.evaluation.tasks import problems
from dpad.models.torch_engine import open_torch_engine
from dpad.runtime.decoding.suffix import SuffixSchedule
from published import Settings, decode

BLOCK = 32
EXECUTORS = ("published", "torch", "onnxruntime")  # executors with the same arithmetic
W8A8 = "onnxruntime-w8a8"
GOALS = {"total": 61.4, "engine": 4.0}

FIXED, PARALLEL = {"decoder": "fixed"}, {"decoder": "threshold", "threshold": 0.9}
RUNGS: dict[str, dict[str, Any]] = {
    "vanilla": FIXED | {"early_termination": False},
    "early stop": FIXED,
    "DPad": FIXED | {"thin": True},
    "parallel": PARALLEL,
    "parallel + DPad": PARALLEL | {"thin": True},
    "parallel + prefix": PARALLEL | {"cache": "prefix"},
    "parallel + DPad + prefix": PARALLEL | {"thin": True, "cache": "prefix"},
    "parallel + DPad + dual": PARALLEL | {"thin": True, "cache": "dual"},
    "parallel + DPad + extend": PARALLEL | {"thin": True, "cache": "extend"},
}
BEST_PUBLISHED = "parallel + DPad + prefix"
EVERYTHING = "parallel + DPad + dual"
EXTEND = "parallel + DPad + extend"


@dataclass
class Run:
    """Times and results of the decodes of one rung on one executor."""

    seconds: list[float] = field(default_factory=list)
    nfe: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    canvases: list[list[int]] = field(default_factory=list)

    def add(self, seconds: float, nfe: int, canvas: list[int], prompt: int, eos: int) -> None:
        """Add one decode; tokens are counted up to EOS."""
        generated = canvas[prompt:]
        self.seconds.append(seconds)
        self.nfe.append(nfe)
        self.tokens.append(generated.index(eos) if eos in generated else len(generated))
        self.canvases.append(generated)

    def pace(self) -> list[float]:
        """Milliseconds per pass of each decode."""
        return [1e3 * s / n for s, n in zip(self.seconds, self.nfe)]

    def facts(self) -> dict[str, Any]:
        """Seconds, passes, tokens, and milliseconds per pass."""
        return {
            "samples": len(self.seconds),
            "seconds": measure.spread(self.seconds),
            "nfe": measure.spread(self.nfe),
            "tokens": measure.spread(self.tokens),
            "tokens_per_s": measure.spread([n / s for n, s in zip(self.tokens, self.seconds)]),
            "ms_per_step": measure.spread(self.pace()),
        }


class Ladder:
    """The executors for one bundle; runs a rung on each of them."""

    def __init__(self, directory: Path, threads: int, preset: dpad.Gaussian) -> None:
        bundle = dpad.Bundle.open(directory)
        self.fast = dpad.load(directory, engine="onnxruntime-cpu", threads=threads)
        self.models = {"onnxruntime": self.fast, "torch": dpad.load(directory, engine="eager")}
        if "w8a8" in bundle.manifest.steps:
            self.models[W8A8] = dpad.load(directory, engine="onnxruntime-cpu-w8a8", threads=threads)
        self.executors = [*EXECUTORS, *(name for name in self.models if name not in EXECUTORS)]
        torch.set_num_threads(threads)
        self.network = open_torch_engine(bundle).program.model
        self.contract, self.preset = bundle.manifest.contract, preset

    def schedule(self, rung: dict[str, Any], length: int) -> SuffixSchedule:
        """The schedule of a rung: the preset's suffix dropout, or the whole suffix."""
        window = min(self.preset.window or 256, length)
        return dpad.Gaussian(self.preset.k, self.preset.scale, window) if rung.get("thin") else dpad.Full()

    def kept(self, schedule: SuffixSchedule, prompt: int, length: int) -> list[list[int]]:
        """The canvas positions that the runtime keeps for each block with `schedule` and seed 0."""
        ends = [prompt + (block + 1) * BLOCK for block in range(length // BLOCK)]
        return [
            (end + schedule.keep(block, prompt + length - end, length, np.random.default_rng((0, block, 0)))).tolist()
            for block, end in enumerate(ends)
        ]

    def run(self, executor: str, name: str, prompt: list[int], length: int) -> tuple[float, int, list[int]]:
        """Seconds, passes and canvas of one decode."""
        rung = RUNGS[name]
        schedule = self.schedule(rung, length)
        options = {key: value for key, value in rung.items() if key != "thin"}
        if executor == "published":
            settings = Settings(
                length,
                self.contract.mask_token_id,
                self.contract.eos_token_id,
                threshold=rung.get("threshold"),
                cache=rung.get("cache", "none"),
                kept=self.kept(schedule, len(prompt), length),
                early_stop=rung.get("early_termination", True),
            )
            began = time.perf_counter()
            decoded = decode(self.network, prompt, settings)
            return time.perf_counter() - began, decoded.nfe, decoded.canvas.tolist()
        began = time.perf_counter()
        result = self.models[executor].generate(
            prompt, gen_length=length, schedule=schedule, **{"cache": "none", **options}
        )
        return time.perf_counter() - began, result.nfe, result.canvas.tolist()


def climb(ladder: Ladder, length: int, shots: int, samples: int, vanilla: int, seed: int) -> dict[str, dict[str, Run]]:
    """Time every rung on every executor with the same problems; executors take turns."""
    runs: dict[str, dict[str, Run]] = {name: {executor: Run() for executor in ladder.executors} for name in RUNGS}
    turns = [(name, executor) for name in RUNGS for executor in ladder.executors]
    turns = [turn for turn in turns if turn != (EXTEND, "published")]  # `extend` is not published
    prompts = [list(ladder.fast.request(one.prompt).prompt_ids) for one in problems(samples, shots, seed).samples]
    for executor in ladder.executors:
        ladder.run(executor, BEST_PUBLISHED, prompts[0], length)  # warms up
    for index, prompt in enumerate(prompts):
        first = index % len(turns)
        for name, executor in turns[first:] + turns[:first]:
            if name == "vanilla" and index >= vanilla:
                continue
            seconds, nfe, canvas = ladder.run(executor, name, prompt, length)
            runs[name][executor].add(seconds, nfe, canvas, len(prompt), ladder.contract.eos_token_id)
        measure.say(f"{length} tokens, {shots}-shot: {index + 1} of {len(prompts)}")
    return runs


def accuracy(ladder: Ladder, length: int, shots: int, count: int, seed: int) -> dict[str, float]:
    """Strict match of every rung, and of everything in w8a8; vanilla is left out, since early stop writes its text."""
    if not count:
        return {}
    task = problems(count, shots, seed + 1)
    ways = {name: (ladder.fast, RUNGS[name]) for name in RUNGS if name != "vanilla"}
    if W8A8 in ladder.models:
        ways[W8A8] = ladder.models[W8A8], RUNGS[EVERYTHING]
    right = dict.fromkeys(ways, 0.0)
    for index, one in enumerate(task.samples):
        for name, (model, rung) in ways.items():
            options = {key: value for key, value in rung.items() if key != "thin"}
            schedule = ladder.schedule(rung, length)
            result = model.generate(one.prompt, gen_length=length, schedule=schedule, **{"cache": "none", **options})
            right[name] += task.grade(one, result.text)["strict_match"]
        if index % 20 == 19:
            measure.say(f"{length} tokens, {shots}-shot: accuracy of {index + 1} of {count}")
    return {name: measure.digits(hits / count) for name, hits in right.items()}


def chain(runs: dict[str, dict[str, Run]]) -> dict[str, float]:
    """Split the total speed-up into ratios of seconds on the same samples, whose product is the total."""

    def seconds(name: str, executor: str) -> float:
        return float(np.median(runs[name][executor].seconds[: len(runs["vanilla"]["published"].seconds)]))

    links: list[tuple[str, tuple[str, str]]] = [
        ("early stop: blocks behind the answer", ("early stop", "published")),
        ("parallel decoding: fewer passes", ("parallel", "published")),
        ("DPad: fewer rows a pass, other passes", ("parallel + DPad", "published")),
        ("dual cache: fewer rows a pass, other passes", (EVERYTHING, "published")),
        ("engine: the same passes in ONNX Runtime", (EVERYTHING, "onnxruntime")),
    ]
    ratios, before = {}, seconds("vanilla", "published")
    total = before / seconds(*links[-1][1])
    for told, (name, executor) in links:
        after = seconds(name, executor)
        ratios[told], before = measure.digits(before / after), after
    return ratios | {"total": measure.digits(total)}


def cell(runs: dict[str, dict[str, Run]], right: dict[str, float]) -> dict[str, Any]:
    """The results of one length and number of shots."""
    best = runs[BEST_PUBLISHED]
    rungs = {
        name: {executor: run.facts() for executor, run in executors.items() if run.seconds}
        | {"strict_match": right.get("early stop" if name == "vanilla" else name)}
        | {"differing_tokens": differing(executors)}
        for name, executors in runs.items()
    }
    whole = runs[EVERYTHING]["onnxruntime"].seconds
    found = {
        "rungs": rungs,
        "chain": chain(runs),
        "engine_at_same_passes": measure.paired(best["published"].seconds, best["onnxruntime"].seconds),
        "extend_over_dual": measure.paired(whole, runs[EXTEND]["onnxruntime"].seconds),
        "all_over_best_published": measure.paired(best["published"].seconds, whole),
        "same_passes": best["published"].nfe == best["onnxruntime"].nfe,
    }
    if W8A8 in best:
        found["w8a8"] = {
            "engine_a_pass": measure.paired(best["published"].pace(), best[W8A8].pace()),
            "strict_match": right.get(W8A8),
        }
    return found


def differing(executors: dict[str, Run]) -> int:
    """The number of generated tokens in which executors differ from the first one, the published decoder."""
    first, *others = [executors[name].canvases for name in EXECUTORS if executors[name].canvases]
    return sum(a != b for other in others for ours, theirs in zip(first, other) for a, b in zip(ours, theirs))


@click.command(cls=measure.Benchmark)
@measure.own_bundle
@click.option("--length", "lengths", multiple=True, type=int, default=(256, 512, 1024), show_default=True)
@click.option("--shots", multiple=True, type=click.IntRange(0), default=(0, 1, 4), show_default=True)
@click.option("--samples", default=5, show_default=True, type=click.IntRange(1), help="Timed problems per cell.")
@click.option(
    "--vanilla-samples", default=1, show_default=True, type=click.IntRange(1), help="Timed problems of vanilla."
)
@click.option("--accuracy", "count", default=50, show_default=True, type=click.IntRange(0), help="Problems a cell.")
@click.option("--k", default=3.0, show_default=True, help="k of the suffix dropout.")
@click.option("--scale", default=1.6, show_default=True, help="Scale of the suffix dropout.")
@click.option("--window", default=256, show_default=True, help="Window of the suffix dropout.")
@click.option("--seed", default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Keep the cells in --out: continue a stopped run, or add cells.")
@measure.threads_option
@measure.out_option
def main(
    bundle: Path | None,
    model: str,
    lengths: tuple[int, ...],
    shots: tuple[int, ...],
    samples: int,
    vanilla_samples: int,
    count: int,
    k: float,
    scale: float,
    window: int,
    seed: int,
    resume: bool,
    threads: int,
    out: Path | None,
) -> None:
    """Measure every decoder and executor end to end, for each --length and number of --shots."""
    preset = dpad.Gaussian(k, scale, window)
    with measure.bundle_for(bundle, model, max_batch=1, max_length=4096, w8a8=True) as directory:
        ladder = Ladder(directory, threads, preset)
        document: dict[str, Any] = {
            "benchmark": "ladder",
            "machine": measure.machine(),
            **measure.model_facts(directory),
            "threads": threads,
            "preset": {"k": k, "scale": scale, "window": window},
            "accuracy_problems": count,
            "goals": GOALS,
            "cells": [],
        }
        if resume and out is not None and out.exists():
            before = json.loads(out.read_text("utf-8"))
            if before | {"cells": []} != document:
                raise click.ClickException(f"{out} was measured with other settings; leave out --resume to replace it")
            document["cells"] = before["cells"]
        have = {(found["length"], found["shots"]) for found in document["cells"]}
        for length in lengths:
            for number in shots:
                if (length, number) in have:
                    continue
                runs = climb(ladder, length, number, samples, min(vanilla_samples, samples), seed)
                right = accuracy(ladder, length, number, count, seed)
                document["cells"].append({"length": length, "shots": number, **cell(runs, right)})
                document["cells"].sort(key=lambda found: (found["length"], found["shots"]))
                measure.store(document, out)
    measure.publish(document, out)


if __name__ == "__main__":
    main()
