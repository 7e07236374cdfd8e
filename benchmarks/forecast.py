"""What `dpad plan` predicts of plans, against plans that TensorRT-RTX builds here.

    python benchmarks/forecast.py --work /tmp/forecast --out docs/benchmarks/forecast.json

One layer of each published layout at full width, with random weights, in bfloat16: activations do not grow with the
layers, and what a build takes grows with the weights alone. A point is a model and the limits of the engine. Then more
layers with packed weights, whose codes the builder may unpack. The builder itself says what activations it plans;
`build_mib` is the most memory of the building process that is not mapped from files. Ratios are prediction over
measurement.

`--work` needs room for 12 GB, which is removed at the end.
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
    """A bundle of `layers` layers in `work`/bundle."""
    from dpad.export.forecast.synthetic import write_checkpoint
    from dpad.export.pipeline import export_bundle
    from dpad.export.progress import Progress
    from dpad.export.settings import ExportSettings

    write_checkpoint(model, work / "source", layers, 0, Progress())
    settings = ExportSettings(dtypes=(DTYPE,), weights=(weights,))
    export_bundle(str(work / "source"), work / "bundle", settings, Progress())
    shutil.rmtree(work / "source")


def built(directory: Path, batch: int, length: int) -> dict[str, Any]:
    """Builds a plan with these limits; what it takes, and what was predicted."""
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
    """Compare `dpad plan` with builds."""
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
