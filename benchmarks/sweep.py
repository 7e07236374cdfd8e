"""Measures quality and speed over DPad's window, k, scale and the confidence threshold; finds a preset for each task.

    python benchmarks/sweep.py --out docs/benchmarks/sweep.json

Every setting decodes the same held-out samples in ONNX Runtime, and settings take turns at every sample. A task's
preset is the fastest setting whose score is at most one point below that of the whole suffix at the published threshold
of 0.9. If several settings are within 2 % of the fastest, it is the one of them that keeps the most of the suffix.
"""

import json
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import click

import dpad
import measure
from dpad.evaluation.tasks import Task, long, problems
from dpad.runtime.cache import CACHES

THRESHOLDS = (0.7, 0.8, 0.9, 0.95)
WINDOWS, DROPOUTS = (32, 64, 128, 256), ((3.0, 1.6), (3.0, 2.3), (4.0, 2.0), (4.0, 1.0))  # (k, scale)
PUBLISHED = 0.9
WITHIN = 0.01  # the goal: the preset's score may be this much below that of the whole suffix
METRICS = {"problems": "strict_match", "long": "exact_match"}
LENGTHS = {"problems": 256, "long": 1024}


@dataclass
class Setting:
    """One setting of the sweep and its results; `schedule` None keeps the whole suffix."""

    threshold: float
    schedule: dpad.Gaussian | None
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    nfe: list[int] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(self.scores) / len(self.scores)

    @property
    def kept(self) -> float:
        """About the number of suffix positions kept after a block: scale · window / 2k for a Gaussian."""
        return self.schedule.probabilities(10**6, 10**6).clip(max=1).sum() if self.schedule else float("inf")

    def facts(self) -> dict[str, Any]:
        """The setting and its results."""
        schedule = self.schedule
        return {
            "threshold": self.threshold,
            "schedule": {"k": schedule.k, "scale": schedule.scale, "window": schedule.window} if schedule else None,
            "score": measure.digits(self.score),
            "seconds": measure.spread(self.seconds),
            "seconds_total": measure.digits(sum(self.seconds)),
            "nfe": measure.spread(self.nfe),
        }


def settings(thresholds: tuple[float, ...], windows: tuple[int, ...]) -> list[Setting]:
    """All settings: the whole suffix and every dropout, at every threshold."""
    dropouts = [dpad.Gaussian(k, scale, window) for window, (k, scale) in product(windows, DROPOUTS)]
    return [Setting(threshold, schedule) for threshold in thresholds for schedule in (None, *dropouts)]


def run(model: dpad.DiffusionModel, task: Task, points: list[Setting], cache: str) -> None:
    """Decode every sample with every setting; settings take turns."""
    length, metric = LENGTHS[task.name], METRICS[task.name]
    model.generate(task.samples[0].prompt, gen_length=length, cache=cache)  # warms up
    for index, sample in enumerate(task.samples):
        first = index % len(points)
        for point in points[first:] + points[:first]:
            schedule = point.schedule or dpad.Full()
            began = time.perf_counter()
            result = model.generate(
                sample.prompt, gen_length=length, cache=cache, threshold=point.threshold, schedule=schedule
            )
            point.seconds.append(time.perf_counter() - began)
            point.scores.append(task.grade(sample, result.text)[metric])
            point.nfe.append(result.nfe)
        measure.say(f"{task.name}: {index + 1} of {len(task.samples)} samples, {len(points)} settings each")


def preset(points: list[Setting]) -> Setting:
    """The recommended setting; see the top of this file."""
    whole = next(point for point in points if point.schedule is None and point.threshold == PUBLISHED)
    good = [point for point in points if point.score >= whole.score - WITHIN]
    fastest = min(sum(point.seconds) for point in good)
    return max((point for point in good if sum(point.seconds) <= 1.02 * fastest), key=lambda point: point.kept)


def stored(tasks: dict[str, Any], cache: str) -> dict[str, Any]:
    """The recommended presets as a checkpoint's presets.json, by task; tasks without a right answer are left out.

    There is no `default`, since the best settings for short answers and for long ones differ.
    """
    presets = {}
    for name, task in tasks.items():
        best = task["preset"]
        if not best["score"]:
            measure.say(f"{name}: no preset, since nothing was right")
            continue
        schedule = {"gaussian": best["schedule"]} if best["schedule"] else {"none": {}}
        options = {"gen_length": task["gen_length"], "cache": cache, "threshold": best["threshold"]}
        presets[name] = {**options, "schedule": schedule}
    return presets


@click.command(cls=measure.Benchmark)
@measure.own_bundle
@click.option("--problems", "problem_count", default=60, show_default=True, type=click.IntRange(1))
@click.option("--shots", default=1, show_default=True, type=click.IntRange(0), help="Worked examples before a problem.")
@click.option("--long", "long_count", default=20, show_default=True, type=click.IntRange(0))
@click.option("--threshold", "thresholds", multiple=True, type=float, default=THRESHOLDS, show_default=True)
@click.option("--window", "windows", multiple=True, type=int, default=WINDOWS, show_default=True)
@click.option("--cache", default="dual", show_default=True, type=click.Choice(CACHES))
@click.option("--seed", default=0, show_default=True)
@click.option("--presets", "store", type=click.Path(path_type=Path), help="Write the presets to this file.")
@measure.threads_option
@measure.out_option
def main(
    bundle: Path | None,
    model: str,
    problem_count: int,
    shots: int,
    long_count: int,
    thresholds: tuple[float, ...],
    windows: tuple[int, ...],
    cache: str,
    seed: int,
    store: Path | None,
    threads: int,
    out: Path | None,
) -> None:
    """Sweep the suffix dropout and the threshold on word problems and long outputs."""
    if PUBLISHED not in thresholds:
        raise click.UsageError(f"--threshold must include {PUBLISHED}, at which the preset is judged")
    tasks = [problems(problem_count, shots, seed), *([long(long_count, seed)] if long_count else [])]
    found = {}
    with measure.bundle_for(bundle, model, max_batch=1, max_length=2048) as directory:
        with dpad.load(directory, engine="onnxruntime-cpu", threads=threads) as opened:
            for task in tasks:
                points = settings(thresholds, windows)
                run(opened, task, points, cache)
                found[task.name] = {
                    "metric": METRICS[task.name],
                    "samples": len(task.samples),
                    "gen_length": LENGTHS[task.name],
                    "points": [point.facts() for point in points],
                    "preset": preset(points).facts(),
                }
        facts = measure.model_facts(directory)
    document = {
        "benchmark": "sweep",
        "machine": measure.machine(),
        **facts,
        "engine": "onnxruntime-cpu",
        "dtype": "float32",
        "threads": threads,
        "cache": cache,
        "shots": shots,
        "tasks": found,
    }
    if store is not None:
        store.write_text(json.dumps(stored(found, cache), indent=1) + "\n", encoding="utf-8")
    measure.publish(document, out)


if __name__ == "__main__":
    main()
