"""`hazards`: predicts what would go wrong with an engine before it is built, with reason and solution.

for line in hazards(config, sizes, "bfloat16", "bfloat16-weights-int4", [Load(1, 1024)], GPUS):
    print(line)
"""

from collections.abc import Mapping
from importlib import import_module

from dpad.export.engines.plan import capabilities
from dpad.export.forecast import forecast
from dpad.export.forecast.forecast import Load, Sizes
from dpad.export.forecast.gpus import GpuModel
from dpad.models.checkpoint.checkpoint import Config
from dpad.plugins.checks import check_kernel
from dpad.plugins.errors import AttentionError
from dpad.runtime.bundle.variant import rows_dtype, weights_of
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.extras import install

RESERVED = 1 << 30  # bytes of a device taken by CUDA, kernels and other programs


def hazards(
    config: Config,
    sizes: Sizes,
    stored: str,
    variant: str,
    loads: list[Load],
    gpus: Mapping[str, GpuModel],
    plugin: bool = False,
) -> list[str]:
    """One line for each problem; empty if none is known.

    `stored` is the checkpoint's dtype; `plugin` says that engines are built with `--attention plugin`.
    """
    return [
        *_dtype(stored, rows_dtype(variant)),
        *_weights(weights_of(variant)),
        *_heads(config, rows_dtype(variant)),
        *beyond_training(config, [load.length for load in loads]),
        *_narrow(config),
        *_targets(gpus),
        *_room(sizes, variant, loads, gpus, plugin),
    ]


def fits(need: int, gpu: GpuModel) -> bool:
    """Whether `need` bytes fit into the GPU's memory beside `RESERVED`."""
    return need + RESERVED <= gpu.memory << 20


def _dtype(stored: str, dtype: str) -> list[str]:
    if dtype == "float32":
        return ["dtype float32: TensorRT's fused attention computes in 16 bit only; take --dtype bfloat16 or float16"]
    if dtype == "float16" and stored != "float16":
        return [
            f"dtype float16: weights in {stored} may exceed 65504, and then export stops and names the tensor; sums in "
            "a step may exceed it too, and then parity shows infinities; bfloat16 avoids both"
        ]
    return []


def _weights(weights: str) -> list[str]:
    """Problems of packed weights, seen in the plans that benchmarks/forecast.py builds."""
    if weights not in ("int8", "fp8"):
        return []
    larger = "stores most in 16 bit, so that a plan is 0.7 byte a weight larger, and " if weights == "int8" else ""
    return [
        f"weights {weights}: TensorRT-RTX {larger}may unpack some in every step, for which plans asked for 0.3 to "
        "1.8 GB of activations; int4 needs neither"
    ]


def _heads(config: Config, dtype: str) -> list[str]:
    found = []
    try:
        check_kernel(config.head_size, dtype)
    except AttentionError as error:
        found.append(f"--attention plugin: {error}")
    if config.heads < 2:
        found.append("1 head: TensorRT-RTX's fused attention needs at least two")
    return found


def beyond_training(config: Config, lengths: list[int]) -> list[str]:
    """One line for each of `lengths`, of canvases, that is beyond the checkpoint's trained length."""
    return [
        f"length {length}: the checkpoint was trained up to {config.max_length} tokens; take shorter canvases"
        for length in sorted(set(lengths))
        if length > config.max_length
    ]


def _narrow(config: Config) -> list[str]:
    if config.width >= forecast.FITTED_WIDTH:
        return []
    return [
        f"width {config.width}: activations are predicted for models of {forecast.FITTED_WIDTH} and more; "
        "of narrower ones the builder asks for several times as much"
    ]


def _targets(gpus: Mapping[str, GpuModel]) -> list[str]:
    try:
        known = capabilities(import_module("tensorrt_rtx"))
    except ImportError:
        return [f"tensorrt-rtx is not installed, so its targets are not known here ({install('rtx')})"]
    other = [f"{name} ({gpu.capability})" for name, gpu in gpus.items() if gpu.capability not in known]
    if not other:
        return []
    return [
        f"{', '.join(other)}: tensorrt-rtx has no target for it; engine torch-cuda compiles the step there and needs "
        "no plan; or take --target tensorrt on a machine with that GPU"
    ]


def _room(sizes: Sizes, variant: str, loads: list[Load], gpus: Mapping[str, GpuModel], plugin: bool) -> list[str]:
    found = []
    need, here = forecast.predicted_building(sizes, variant), available_memory()
    if need > here:
        found.append(
            f"build: a plan takes about {need / 1e9:.1f} GB of memory, and {here / 1e9:.1f} GB are available on this "
            "machine; build on a larger one, take --weights int4, or for TensorRT --strip-weights"
        )
    for load in loads:
        need = forecast.memory(sizes, variant, load, plugin).total
        small = [name for name, gpu in gpus.items() if not fits(need, gpu)]
        if small:
            found.append(
                f"batch {load.batch}, length {load.length}: {need / 1e9:.1f} GB, and {RESERVED / 1e9:.1f} GB for CUDA, "
                f"do not fit on {', '.join(small)}; take a smaller --max-batch or --max-length, or --weights int4"
            )
    return found
