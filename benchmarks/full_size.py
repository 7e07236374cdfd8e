"""Measures export, parity and a build of a full-size checkpoint with random weights: time and memory of each stage.

    python benchmarks/full_size.py --model llada --work /tmp/full --out docs/benchmarks/full_size.json
    python benchmarks/full_size.py --model llada --stage plan_int4 --work /tmp/full --out docs/benchmarks/full_size.json

The stages run one after the other, each in a fresh process. Each does what a command does: `dpad synth MODEL`; `dpad
export` in the checkpoint's own bfloat16; the same with a float32 step over the same files, which a CPU can run; `dpad
parity --steps 2 --engine onnxruntime-cpu`; and `dpad export --weights int4 --target tensorrt-rtx` for compute
capability 8.9. `seconds` are split by task, as in the commands' reports; `reading` is the part for hashing the shards
and checking them for NaN, which depends on the disk. `peak_mib` is the largest resident memory of the process, with
pages of mapped weights, which the system can reclaim; `own_mib` is the largest memory that is not mapped from files,
sampled ten times a second.

`--work` needs disk space for the checkpoint (16 GB), which the bundle links, and for 10 GB of packed weights and plan.
Everything is removed at the end. Models and stages in `--out` are kept if they were measured on the same machine with
the same libraries.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

import measure
from dpad.export.forecast.layouts import LAYOUTS
from dpad.export.progress import Advance, Progress

STAGES = ("export", "export_float32", "parity", "plan_int4")
GOALS = {"seconds": 60, "peak_mib": 1536}  # for the export, without `reading`


class Stopwatch(Progress):
    """Measures the seconds of every task; those of all shards are added."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Measure a task from its begin to its end, with the tasks inside it."""
        began = time.perf_counter()
        yield lambda amount: None
        name = re.sub(r"\S+\.safetensors", "shards", description)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        measure.say(f"  {description}: {time.perf_counter() - began:.1f} s")


def synthesise(watch: Stopwatch, model: str, layers: int | None, work: Path) -> dict[str, Any]:
    """Do what `dpad synth` does."""
    from dpad.export.forecast.synthetic import write_checkpoint

    summary = write_checkpoint(model, work / "checkpoint", layers, 0, watch)
    return {"layers": summary.layers, "weights": summary.weights, "bytes": summary.size, "shards": summary.shards}


def export(watch: Stopwatch, work: Path, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Do what `dpad export` does, without parity."""
    from dpad.export.pipeline import export_bundle
    from dpad.export.settings import ExportSettings

    settings = ExportSettings(dtypes=dtypes, max_batch=1)
    bundle, _ = export_bundle(str(work / "checkpoint"), work / "bundle", settings, watch)
    steps = bundle.manifest.steps.items()
    return {"step_bytes": {dtype: bundle.path(step.onnx).stat().st_size for dtype, step in steps}}


def parity(watch: Stopwatch, work: Path, steps: int) -> dict[str, Any]:
    """Do what `dpad parity` does, without whole decodes."""
    from dpad.export.parity.compare import compare_bundle, require_passed
    from dpad.runtime.bundle.bundle import Bundle

    bundle = Bundle.open(work / "bundle")
    report = compare_bundle(bundle, watch, engines=["onnxruntime-cpu"], steps=steps, trajectories=False)
    require_passed(report)
    return {"engines": [{key: e[key] for key in ("variant", "status", "detail")} for e in report["engines"]]}


def plan_int4(watch: Stopwatch, work: Path) -> dict[str, Any]:
    """Export a TensorRT-RTX plan with int4 weights, without parity."""
    from dpad.export.pipeline import export_bundle
    from dpad.export.settings import ExportSettings

    settings = ExportSettings(
        targets=("tensorrt-rtx",), dtypes=("bfloat16",), weights=("int4",), capabilities=("8.9",), max_batch=1
    )
    bundle, _ = export_bundle(str(work / "checkpoint"), work / "packed", settings, watch)
    [step], [engine] = bundle.manifest.steps.values(), bundle.manifest.engines
    weights = sum(bundle.path(file).stat().st_size for file in step.weights)
    return {
        "library": f"{engine.library} {engine.library_version}",
        "weights_bytes": weights,
        "plan_bytes": bundle.path(engine.file).stat().st_size,
    }


def staged(stage: Any) -> dict[str, Any]:
    """Run `stage`; returns its results with its seconds and the memory of this process."""
    watch = Stopwatch()
    with measure.OwnPeak() as own:
        began = time.perf_counter()
        facts: dict[str, Any] = stage(watch)
        seconds = time.perf_counter() - began
    tasks = {name: measure.digits(taken) for name, taken in watch.seconds.items()}
    reading = sum(taken for name, taken in watch.seconds.items() if name.startswith(("hash", "check the values")))
    return facts | {
        "seconds": measure.digits(seconds),
        "reading": measure.digits(reading),
        "tasks": tasks,
        "peak_mib": measure.peak_memory() >> 20,
        "own_mib": own.bytes >> 20,
    }


@click.command(cls=measure.Benchmark)
@click.option("--model", default="llada", show_default=True, type=click.Choice(tuple(LAYOUTS)), help="Whose layout.")
@click.option("--layers", type=click.IntRange(1), help="Number of layers, fewer than published.")
@click.option("--steps", default=2, show_default=True, type=click.IntRange(1), help="Random steps of each mode.")
@click.option("--stage", "wanted", multiple=True, type=click.Choice(STAGES), help="Only these, after synth [all].")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="New directory for checkpoint and bundle.")
@measure.out_option
def main(model: str, layers: int | None, steps: int, wanted: tuple[str, ...], work: Path, out: Path | None) -> None:
    """Measure synth, export, parity and a build at full size."""
    machine = measure.machine()
    models = kept(out, machine)
    stages: dict[str, Any] = models.setdefault(model, {"stages": {}})["stages"]
    document: dict[str, Any] = {"benchmark": "full_size", "machine": machine, "model": "random weights", "goal": GOALS}
    document["models"] = models
    work.mkdir(parents=True)
    runs = {
        "synth": partial(synthesise, model=model, layers=layers, work=work),
        "export": partial(export, work=work, dtypes=("bfloat16",)),
        "export_float32": partial(export, work=work, dtypes=("bfloat16", "float32")),
        "parity": partial(parity, work=work, steps=steps),
        "plan_int4": partial(plan_int4, work=work),
    }
    try:
        for name in ("synth", *(name for name in STAGES if name in wanted or not wanted)):
            measure.say(f"{name} {model}")
            facts = measure.in_child(staged, runs[name])
            if name != "synth" or not wanted:  # with --stage, synth was measured by an earlier call
                stages[name] = facts
            measure.say(f"{name}: {facts['seconds']} s, peak {facts['peak_mib']} MiB, {facts['own_mib']} MiB its own")
            measure.store(document, out)
    finally:
        shutil.rmtree(work)
    if done := stages.get("export"):
        models[model]["met"] = (
            done["seconds"] - done["reading"] <= GOALS["seconds"] and done["peak_mib"] <= GOALS["peak_mib"]
        )
    measure.publish(document, out)


def kept(out: Path | None, machine: dict[str, Any]) -> dict[str, Any]:
    """The models in `out` that were measured on this machine, since each model is measured by a call of its own."""
    if out is None or not out.exists():
        return {}
    before = json.loads(out.read_text("utf-8"))
    models: dict[str, Any] = before["models"] if before["machine"] == machine else {}
    return models


if __name__ == "__main__":
    main()
