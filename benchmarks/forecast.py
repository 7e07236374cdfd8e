"""What `dpad plan` predicts of plans, against plans that TensorRT-RTX builds here.

    python benchmarks/forecast.py --work /tmp/forecast --out docs/benchmarks/forecast.json

One layer of each published layout at full width, with random weights, in bfloat16: activations do not grow with the
layers, and what a build takes grows with the weights alone. A point is a model and the limits of the engine. The
builder itself says what activations it plans; `build_mib` is the most memory of the building process that is not
mapped from files. Ratios are prediction over measurement.

`--work` needs room for 6 GB, which is removed at the end.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import measure
from dpad.export import forecast
from dpad.export.forecast import Load, Sizes

MODELS = ("llada", "dream")
LIMITS = ((1, 1024), (1, 4096), (4, 1024), (4, 4096))  # batch, canvas
CAPABILITY = "8.9"


def prepare(model: str, work: Path) -> None:
    """A bundle of one layer in `work`/MODEL."""
    from dpad.export.pipeline import ExportSettings, export_bundle
    from dpad.export.progress import Progress
    from dpad.export.synthetic import write_checkpoint

    write_checkpoint(model, work / "source", 1, 0, Progress())
    export_bundle(str(work / "source"), work / model, ExportSettings(), Progress())
    shutil.rmtree(work / "source")


def built(directory: Path, batch: int, length: int) -> dict[str, Any]:
    """Builds a plan with these limits; what it takes, and what was predicted."""
    import tensorrt_rtx

    from dpad.export.plan import build_plan
    from dpad.export.progress import Progress
    from dpad.models.checkpoint import parse_config
    from dpad.runtime.bundle import Bundle

    bundle = Bundle.open(directory, hashes=False)
    contract = replace(bundle.manifest.contract, max_batch=batch, max_length=length)
    onnx = bundle.path(bundle.manifest.steps["bfloat16"].onnx)
    with measure.OwnPeak() as peak:
        plan = build_plan(tensorrt_rtx, onnx, contract, "bfloat16", CAPABILITY, Progress())
    sizes = Sizes.of(*parse_config(bundle.manifest.model_config))
    predicted = forecast.memory(sizes, "bfloat16", Load(batch, length), contract.logit_shift)
    pairs = {
        "activations": (predicted.activations, plan.activations),
        "plan": (predicted.weights, plan.data.nbytes),
        "build": (forecast.building(predicted.weights), peak.bytes),
    }
    found = {f"{name}_mib": actual >> 20 for name, (_, actual) in pairs.items()}
    return found | {f"{name}_ratio": measure.digits(told / actual) for name, (told, actual) in pairs.items()}


@click.command(cls=measure.Benchmark)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="New directory for the bundles.")
@measure.out_option
def main(work: Path, out: Path | None) -> None:
    """Compare `dpad plan` with builds."""
    work.mkdir(parents=True)
    results = []
    try:
        for model in MODELS:
            measure.in_child(prepare, model, work)
            for batch, length in LIMITS:
                found = measure.in_child(built, work / model, batch, length)
                results.append({"model": model, "batch": batch, "length": length, **found})
                measure.say(
                    f"{model}, batch {batch}, length {length}: activations {found['activations_mib']} MiB, predicted "
                    f"over that {found['activations_ratio']}; build {found['build_mib']} MiB, {found['build_ratio']}"
                )
    finally:
        shutil.rmtree(work)
    machine = measure.machine()
    machine["libraries"]["tensorrt-rtx"] = measure.library_version("tensorrt-rtx")
    document = {"benchmark": "forecast", "machine": machine, "model": " and ".join(MODELS), "results": results}
    measure.publish(document, out)


if __name__ == "__main__":
    main()
