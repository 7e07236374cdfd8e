"""The compiled engines of a bundle: which to build, their keys, and which to reuse.

    recipe = EngineRecipe(("tensorrt-rtx",), ("float16",), ("8.9",))
    recipe.check()
    entries = build_engines(recipe, contract, stage, steps, decide, previous, progress)

The key of an engine holds everything that changes what it computes or where it can run; see `EngineEntry`.
"""

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpad.export.engines.plan import build_plan, check_capability, profiles
from dpad.export.forecast.forecast import building
from dpad.export.progress import Progress
from dpad.export.writing.digest import digest
from dpad.models.checkpoint.headers import read_headers
from dpad.plugins.checks import check_kernel
from dpad.plugins.tiling import PLUGIN_SPLITS
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import BuildFlags, EngineEntry, StepEntry
from dpad.runtime.bundle.variant import PACKED, rows_dtype
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.capability import PORTABLE, label, rtx_refuses, rtx_takes
from dpad.runtime.engines.machine import Machine, available_memory
from dpad.runtime.errors import ExportError
from dpad.runtime.extras import install

HALF = ("float16", "bfloat16")
ATTENTIONS = ("native", "plugin")
_FALLBACK_CAPABILITY = "8.9"


@dataclass(frozen=True)
class EngineRecipe:
    """Which engines a bundle gets: every target × 16-bit step × compute capability, all built with the same flags.

    `steps` are variant names (runtime/bundle/variant.py). `capabilities` may hold `PORTABLE`; if it is empty, each
    target has its own default. `attention` is `native` (the function body) or `plugin` (the project's own kernel).
    """

    targets: tuple[str, ...]
    steps: tuple[str, ...]
    capabilities: tuple[str, ...]
    attention: str = "native"
    flags: BuildFlags = field(default_factory=BuildFlags)

    def compiled(self) -> dict[str, tuple[str, ...]]:
        """Targets that are compiled, each with the compute capabilities of its plans.

        By default TensorRT-RTX gets one portable plan; TensorRT always gets one plan, for this machine's GPU.
        """
        chosen = {}
        for target in (target for target in self.targets if target != "onnx"):
            gpu = Machine.current().gpu
            default = PORTABLE if target == "tensorrt-rtx" else gpu.compute_capability if gpu else _FALLBACK_CAPABILITY
            chosen[target] = self.capabilities or (default,)
        return chosen

    def check(self) -> None:
        """Raise `ExportError`, with the reason, if a target does not support one of the options."""
        flags = self.flags
        if self.attention not in ATTENTIONS:
            raise ExportError(f"attention {self.attention!r} is not one of {', '.join(ATTENTIONS)}")
        if self.attention == "plugin" and flags.hardware_compatible:
            raise ExportError(
                "the plugin's kernel is compiled for one compute capability; leave --hardware-compatible out"
            )
        if flags.lean and not flags.version_compatible:
            raise ExportError(
                "--lean needs --version-compatible: it leaves out the runtime that this option puts into a plan"
            )
        if flags.lean and self.attention == "plugin":
            raise ExportError(
                "TensorRT does not document plugins in its lean runtime; leave out --lean or --attention plugin"
            )
        if flags.strip_weights and self.attention == "plugin":
            raise ExportError(
                "TensorRT does not document plugins in a plan that is refitted; leave --strip-weights out"
            )
        if flags.strip_weights and flags.version_compatible:
            raise ExportError("a version-compatible plan cannot be refitted; leave --strip-weights out")
        compiled = self.compiled()
        if not compiled and (flags != BuildFlags() or self.attention != "native" or self.capabilities):
            raise ExportError("these options are for compiled engines: add --target tensorrt or tensorrt-rtx")
        if "tensorrt-rtx" not in compiled:
            return
        for asked, why in (
            (self.attention == "plugin", "it takes no plugins (--attention plugin)"),
            (flags.hardware_compatible, "it targets compute capabilities: repeat --compute-capability instead"),
            (flags.version_compatible, "its package has no lean runtime to put into a plan (--version-compatible)"),
        ):
            if asked:
                raise ExportError(f"target tensorrt-rtx: {why}")

    def check_builders(self) -> None:
        """Raise `ExportError` if a target's library is missing, or cannot build for one of the capabilities."""
        for target, capabilities in self.compiled().items():
            trt = _import_builder(target)
            for capability in capabilities:
                check_capability(trt, capability)


def build_engines(
    recipe: EngineRecipe,
    contract: StepContract,
    stage: Path,
    steps: dict[str, StepEntry],
    decide: str,
    previous: Bundle | None,
    progress: Progress,
) -> tuple[EngineEntry, ...]:
    """Compile the engines of `recipe` below `stage`, and `decide` once for each library and capability.

    An engine of `previous` with an equal key is copied instead. `progress` reports the memory of a build before it
    starts and its duration afterwards. Raises `ExportError` if a library or the memory for a build is missing,
    `AttentionError` if the plugin's kernel does not support the heads, and `EngineBuildError` if a build fails.
    """
    plugin_version = ""
    if recipe.attention == "plugin":  # the kernel is part of the engine, so it is part of the key
        from dpad.plugins.trt_face import fingerprint

        plugin_version = fingerprint()
    entries = []
    shared = {
        "platform": Machine.current().platform,
        "attention": recipe.attention,
        "plugin_version": plugin_version,
        "decide_sha256": digest(stage / decide),
        "profiles": {name: {k: list(v) for k, v in ranges.items()} for name, ranges in profiles(contract).items()},
        "flags": recipe.flags,
        "build_seconds": 0.0,
    }
    compiled, gpu = recipe.compiled(), Machine.current().gpu
    if "tensorrt-rtx" in compiled and gpu is not None and not rtx_takes(gpu.compute_capability):
        progress.say(f"{gpu.name}: {rtx_refuses(gpu.compute_capability)}")
    for name in (name for name in recipe.steps if rows_dtype(name) in HALF and compiled):
        if recipe.attention == "plugin":
            check_kernel(contract.head_size, rows_dtype(name))
        step = _step_to_compile(stage, steps[name], recipe.attention)
        memory = _memory([stage / file for file in steps[name].weights])
        for target, capabilities in compiled.items():
            trt = _import_builder(target)
            for capability in capabilities:
                entry = _engine_entry(target, trt, stage, step, name, capability, shared)
                entries.append(_build_engine(entry, trt, stage, decide, contract, memory, previous, progress))
    return tuple(entries)


def _step_to_compile(stage: Path, step: StepEntry, attention: str) -> StepEntry:
    """The step that the engines are compiled from; for plugin attention it is written here."""
    if attention == "native":
        return step
    from dpad.export.engines.plugin_graph import write_plugin_step

    return replace(step, onnx=write_plugin_step(stage / step.onnx, PLUGIN_SPLITS).relative_to(stage).as_posix())


def _import_builder(target: str) -> Any:
    module, extra = {"tensorrt-rtx": ("tensorrt_rtx", "rtx"), "tensorrt": ("tensorrt", "tensorrt")}[target]
    try:
        return __import__(module)
    except ImportError as error:
        raise ExportError(f"target {target} needs {module}: {install(extra)} ({error})") from error


def _engine_entry(
    target: str, trt: Any, stage: Path, step: StepEntry, variant: str, capability: str, shared: dict[str, Any]
) -> EngineEntry:
    """The entry, with its key, of an engine that is not built yet; `shared` are fields common to all of an export."""
    plugin = "" if shared["attention"] == "native" else f"-{shared['attention']}"
    library = "tensorrt_lean" if shared["flags"].lean else trt.__name__
    name = f"engines/{library.replace('_', '-')}-{label(capability)}"
    return EngineEntry(
        file=f"{name}-{variant}{plugin}.plan",
        onnx=step.onnx,
        decide=f"{name}-decide.plan",
        target=target,
        variant=variant,
        library=library,
        library_version=trt.__version__,
        compute_capability=capability,
        step_sha256=digest(stage / step.onnx),
        weights_sha256=tuple(digest(stage / name) for name in step.weights),
        **shared,
    )


def _build_engine(
    entry: EngineEntry,
    trt: Any,
    stage: Path,
    decide: str,
    contract: StepContract,
    memory: int,
    previous: Bundle | None,
    progress: Progress,
) -> EngineEntry:
    target = stage / entry.file
    target.parent.mkdir(exist_ok=True)
    for old in previous.manifest.engines if previous else ():
        if previous and old.key() == entry.key():
            for kept, place in ((old.file, target), (old.decide, stage / entry.decide)):
                shutil.copyfile(previous.path(kept), place)
            progress.say(f"{entry.file}: unchanged, reused")
            return replace(entry, build_seconds=old.build_seconds)
    _require_memory(entry, memory, progress)
    began, capability = time.perf_counter(), entry.compute_capability
    if not (stage / entry.decide).exists():
        built = build_plan(trt, stage / decide, contract, "float32", capability, progress, entry.flags, decides=True)
        (stage / entry.decide).write_bytes(built.data)
    source, flags = stage / entry.onnx, entry.flags
    plan = build_plan(trt, source, contract, entry.variant, capability, progress, flags, entry.attention)
    target.write_bytes(plan.data)
    seconds = time.perf_counter() - began
    progress.say(
        f"{entry.file}: {plan.data.nbytes / 1e6:.1f} MB, built in {seconds:.1f} s; a step takes "
        f"{plan.activations / 1e6:.0f} MB of device memory beside weights and caches"
    )
    return replace(entry, build_seconds=round(seconds, 3))


def _memory(shards: list[Path]) -> int:
    """Bytes of memory that TensorRT-RTX takes to build with these weights; see `forecast.building`."""
    packed = dict.fromkeys(PACKED, 0)
    for name, entry in read_headers(shards, packed=True).items():
        if (weights := name.rsplit(".", 1)[-1]) in packed:
            packed[weights] += entry.length * (2 if weights == "int4" else 1)
    return building(sum(shard.stat().st_size for shard in shards), packed)


def _require_memory(entry: EngineEntry, need: int, progress: Progress) -> None:
    """Report the memory `need` of a TensorRT-RTX build, and raise `ExportError` if the machine has less available."""
    if entry.target != "tensorrt-rtx" or entry.flags.strip_weights:
        return
    here = available_memory()
    told = f"{entry.file}: the build takes about {need / 1e9:.1f} GB of memory, {here / 1e9:.1f} GB are available"
    if need > here:
        raise ExportError(f"{told}; build on a larger machine, or export fewer bits a weight")
    progress.say(told)
