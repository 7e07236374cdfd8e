"""Compares the predictions of `dpad plan` with plans that TensorRT-RTX builds here.

    python benchmarks/forecast.py --work /tmp/forecast --out docs/benchmarks/forecast.json

It builds one layer of each published layout at full width, with random bfloat16 weights. One layer is enough, since
activations do not grow with the number of layers, and the memory of a build grows with the weights alone. A point is a
model with the limits of an engine. More layers follow with packed weights, whose codes the builder may unpack.
Activations are those that the builder reports; `build_mib` is the peak memory of the building process that is not
mapped from files. Ratios are prediction over measurement.

`--work` needs 12 GB of disk space, which is freed at the end.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import measure
from dpad.export.forecast import forecast
from dpad.export.forecast.forecast import Load, Sizes
from dpad.runtime.bundle.variant import FULL, PACKED

MODELS = ("llada", "dream")
PACKED_LAYERS = (4, 8)
LIMITS = ((1, 1024), (1, 4096), (4, 1024), (4, 4096))  # batch, canvas
CAPABILITY, DTYPE = "8.9", "bfloat16"


def prepare(model: str, weights: str, layers: int, work: Path) -> None:
    """Export a bundle of `layers` layers to `work`/bundle."""
    from dpad.export.forecast.synthetic import write_checkpoint
    from dpad.export.pipeline import export_bundle
    from dpad.export.progress import Progress
    from dpad.export.settings import ExportSettings

    write_checkpoint(model, work / "source", layers, 0, Progress())
    settings = ExportSettings(dtypes=(DTYPE,), weights=(weights,))
    export_bundle(str(work / "source"), work / "bundle", settings, Progress())
    shutil.rmtree(work / "source")


def built(directory: Path, batch: int, length: int) -> dict[str, Any]:
    """Build a plan with these limits; returns the measured and the predicted memory."""
    import tensorrt_rtx

    from dpad.export.engines.plan import build_plan
    from dpad.export.progress import Progress
    from dpad.models.checkpoint.checkpoint import parse_config
    from dpad.runtime.bundle.bundle import Bundle

    bundle = Bundle.open(directory, hashes=False)
    contract = replace(bundle.manifest.contract, max_batch=batch, max_length=length)
    [(name, step)] = bundle.manifest.steps.items()
    with measure.OwnPeak() as peak:
        plan = build_plan(tensorrt_rtx, bundle.path(step.onnx), contract, name, CAPABILITY, Progress())
    sizes = Sizes.of(*parse_config(bundle.manifest.model_config))
    predicted = forecast.memory(sizes, name, Load(batch, length))
    pairs = {
        "activations": (predicted.activations, plan.activations),
        "plan": (predicted.weights, plan.data.nbytes),
        "build": (forecast.predicted_building(sizes, name), peak.bytes),
    }
    found = {f"{name}_mib": actual >> 20 for name, (_, actual) in pairs.items()}
    return found | {f"{name}_ratio": measure.digits(told / actual) for name, (told, actual) in pairs.items()}


@click.command(cls=measure.Benchmark)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="New directory for the bundles.")
@measure.out_option
def main(work: Path, out: Path | None) -> None:
    """Compare the predictions of `dpad plan` with builds."""
    work.mkdir(parents=True)
    results = []
    bundles = [(model, FULL, 1, LIMITS) for model in MODELS]
    bundles += [(MODELS[0], weights, layers, LIMITS[:1]) for weights in PACKED for layers in PACKED_LAYERS]
    try:
        for model, weights, layers, limits in bundles:
            measure.in_child(prepare, model, weights, layers, work)
            for batch, length in limits:
                found = measure.in_child(built, work / "bundle", batch, length)
                point = {"model": model, "weights": weights, "layers": layers, "batch": batch, "length": length}
                results.append(point | found)
                measure.say(
                    f"{model}, {weights} weights, batch {batch}, length {length}: activations "
                    f"{found['activations_mib']} MiB, predicted over that {found['activations_ratio']}; build "
                    f"{found['build_mib']} MiB, {found['build_ratio']}"
                )
            shutil.rmtree(work / "bundle")
    finally:
        shutil.rmtree(work)
    machine = measure.machine()
    machine["libraries"]["tensorrt-rtx"] = measure.library_version("tensorrt-rtx")
    document = {"benchmark": "forecast", "machine": machine, "model": " and ".join(MODELS), "results": results}
    measure.publish(document, out)


if __name__ == "__main__":
    main()
