"""The compiled engines of a bundle: which to build, under which key, and which to keep.

    entries = build_engines(targets, dtypes, capabilities, contract, stage, steps, previous, progress)

The key of an engine is everything that changes what it computes or where it may run; see
`EngineEntry`.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpad.export.plan import build_plan, profiles
from dpad.export.plan import capabilities as capabilities_of
from dpad.export.progress import Progress
from dpad.runtime.bundle import Bundle, sha256
from dpad.runtime.contract import StepContract
from dpad.runtime.errors import ExportError
from dpad.runtime.machine import Machine
from dpad.runtime.manifest import EngineEntry, StepEntry

HALF = ("float16", "bfloat16")
_FALLBACK_CAPABILITY = "8.9"


def build_engines(
    targets: Sequence[str],
    dtypes: Sequence[str],
    capabilities: Sequence[str],
    contract: StepContract,
    stage: Path,
    steps: dict[str, StepEntry],
    previous: Bundle | None,
    progress: Progress,
) -> tuple[EngineEntry, ...]:
    """Compile every target × 16-bit dtype × compute capability below `stage`.

    An engine of `previous` with an equal key is copied instead. Raises `ExportError` if a
    library is missing and `EngineBuildError` if a build fails.
    """
    entries = []
    for target in targets:
        if target == "onnx":
            continue
        trt = _import_builder(target)
        for dtype in (d for d in dtypes if d in HALF):
            for capability in capabilities:
                entry = _engine_entry(target, trt, stage, steps[dtype], contract, dtype, capability)
                entries.append(_build_engine(entry, trt, stage, steps[dtype], contract, previous, progress))
    return tuple(entries)


def default_capability(target: str) -> str:
    """This machine's compute capability if the library of `target` knows it (RTX lacks 9.0), else 8.9."""
    gpu = Machine.current().gpu
    known = capabilities_of(_import_builder(target))
    return gpu.compute_capability if gpu and gpu.compute_capability in known else _FALLBACK_CAPABILITY


def _import_builder(target: str) -> Any:
    module, extra = {"tensorrt-rtx": ("tensorrt_rtx", "rtx"), "tensorrt": ("tensorrt", "tensorrt")}[target]
    try:
        return __import__(module)
    except ImportError as error:
        raise ExportError(f"target {target} needs {module}: pip install 'dpad[{extra}]' ({error})") from error


def _engine_entry(
    target: str, trt: Any, stage: Path, step: StepEntry, contract: StepContract, dtype: str, capability: str
) -> EngineEntry:
    """The key of an engine, before it is built."""
    return EngineEntry(
        file=f"engines/{target}-sm{capability.replace('.', '')}-{dtype}.plan",
        target=target,
        dtype=dtype,
        library=trt.__name__,
        library_version=trt.__version__,
        compute_capability=capability,
        platform=Machine.current().platform,
        attention="native",
        step_sha256=sha256(stage / step.onnx),
        weights_sha256=tuple(sha256(stage / name) for name in step.weights),
        profiles={name: {k: list(v) for k, v in ranges.items()} for name, ranges in profiles(contract).items()},
        build_seconds=0.0,
    )


def _build_engine(
    entry: EngineEntry,
    trt: Any,
    stage: Path,
    step: StepEntry,
    contract: StepContract,
    previous: Bundle | None,
    progress: Progress,
) -> EngineEntry:
    target = stage / entry.file
    target.parent.mkdir(exist_ok=True)
    for old in previous.manifest.engines if previous else ():
        if previous and old.key() == entry.key():
            shutil.copyfile(previous.path(old.file), target)
            progress.say(f"{entry.file}: unchanged, reused")
            return replace(entry, build_seconds=old.build_seconds)
    began = time.perf_counter()
    plan = build_plan(trt, stage / step.onnx, contract, entry.dtype, entry.compute_capability, progress)
    target.write_bytes(plan)
    seconds = time.perf_counter() - began
    progress.say(f"{entry.file}: {len(plan) / 1e6:.1f} MB, built in {seconds:.1f} s")
    return replace(entry, build_seconds=round(seconds, 3))
