"""`candidates` lists a bundle's engines, and says which of them run on this machine and why the others do not.

    for candidate in candidates(bundle, Machine.current()):
        candidate.name, candidate.obstacle      # None: it can run here

Plans come first, because the export was told to compile them for this kind of GPU. Steps that PyTorch compiles here
come next, then ONNX Runtime. Quantized steps come after all others. `known` is a clause about an engine's speed, which
`dpad inspect` prints.

A compiled plan is executable code: it is compared field by field with this machine and this bundle before it may be
opened.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.export_command import export_command
from dpad.runtime.bundle.manifest import EngineEntry
from dpad.runtime.bundle.variant import DYNAMIC, FULL, PACKED, is_quantized, suffix, variant_name
from dpad.runtime.engines.capability import PORTABLE, label, rtx_refuses, rtx_takes, runs_on
from dpad.runtime.engines.machine import Machine, library_version
from dpad.runtime.errors import EngineMismatch, EngineUnavailable
from dpad.runtime.extras import install

_LIBRARIES = {  # distribution, extra
    "tensorrt_rtx": ("tensorrt-rtx", "rtx"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_lean": ("tensorrt-lean", "tensorrt-lean"),
}
_AMPERE = (8, 0)
_CPU_DTYPES = ("float32",)  # ONNX Runtime's CPU provider does no arithmetic in bfloat16 (microsoft/onnxruntime#28768)
# ONNX Runtime's CUDA provider has bfloat16 kernels for every operator of the step (its docs/OperatorKernels.md).
# float16 comes first nevertheless: without a fused kernel for the shape or the GPU, Attention falls back to its
# function body, which mixes types in bfloat16 and fails (microsoft/onnxruntime#27891).
_CUDA_DTYPES = ("float16", "bfloat16", "float32")
_COMPILED_DTYPES = {"cuda": ("bfloat16", "float16"), "cpu": ("float32",)}
_KNOWN = {
    "plan": "compiled for this kind of GPU; no plan has run on one yet",
    "torch-cuda": "a prototype took 7.0 to 7.2 ms per step of LLaDA-8B in bfloat16 on an H100",
    "torch-cpu": "not measured; for checks of torch-cuda's code",
    "onnxruntime-cuda": "in an earlier form, 1.4 times the time of eager PyTorch on an H100",
    "onnxruntime-cpu": "",
}


@dataclass(frozen=True)
class Candidate:
    """A way to run the bundle.

    Attributes:
        name: name of the engine.
        variant, file: the step's variant, and the file that is opened.
        obstacle: why it cannot run on this machine; None if it can.
        entry: the manifest's entry, if it is a compiled plan.
        provider: "cpu" or "cuda", if ONNX Runtime runs it.
        compiled: "cpu" or "cuda", if PyTorch compiles it.
        known: a clause about its speed.
    """

    name: str
    variant: str
    file: str
    obstacle: str | None
    entry: EngineEntry | None = None
    provider: str = ""
    compiled: str = ""
    known: str = ""


def candidates(bundle: Bundle, machine: Machine) -> list[Candidate]:
    """All engines of the bundle, in the order in which `auto` tries them."""
    found = [
        Candidate(
            _plan_name(entry),
            entry.variant,
            entry.file,
            _plan_obstacle(entry, bundle, machine),
            entry,
            known=_KNOWN["plan"],
        )
        for entry in bundle.manifest.engines
    ]
    steps = bundle.manifest.steps
    found += _compiled("cuda", bundle, machine)
    for weights in (FULL, *PACKED):
        for provider, dtypes in (("cuda", _CUDA_DTYPES), ("cpu", _CPU_DTYPES)):
            name = next((name for dtype in dtypes if (name := variant_name(dtype, weights)) in steps), None)
            if name is not None:
                found.append(onnxruntime(provider, name, bundle, _onnxruntime_obstacle(provider, machine)))
    if DYNAMIC in steps:
        found.append(onnxruntime("cpu", DYNAMIC, bundle, _onnxruntime_obstacle("cpu", machine)))
    found += _compiled("cpu", bundle, machine)
    return sorted(found, key=lambda candidate: is_quantized(candidate.variant))


def _compiled(device: str, bundle: Bundle, machine: Machine) -> list[Candidate]:
    """Candidates that PyTorch compiles on `device`: one with full weights and one for each packed format."""
    found, steps = [], bundle.manifest.steps
    for weights in (FULL, *PACKED):
        names = (variant_name(dtype, weights) for dtype in _COMPILED_DTYPES[device])
        if variant := next((name for name in names if name in steps), None):
            file, name = steps[variant].weights[0], f"torch-{device}"
            obstacle, known = _compiled_obstacle(device, machine), _KNOWN[name]
            found.append(Candidate(f"{name}{suffix(variant)}", variant, file, obstacle, compiled=device, known=known))
    return found


def onnxruntime(provider: str, variant: str, bundle: Bundle, obstacle: str | None) -> Candidate:
    """The candidate for a step of the bundle in ONNX Runtime."""
    name, file = f"onnxruntime-{provider}{suffix(variant)}", bundle.manifest.steps[variant].onnx
    known = _KNOWN[f"onnxruntime-{provider}"]
    return Candidate(name, variant, file, obstacle, provider=provider, known=known)


def require_match(entry: EngineEntry, bundle: Bundle, machine: Machine) -> None:
    """Raise an `EngineMismatch` that names the field and the rebuilding command, unless `entry` fits this machine.

    Called before a plan is deserialised, because plans are executable code.
    """
    if machine.gpu and entry.target == "tensorrt-rtx" and not rtx_takes(machine.gpu.compute_capability):
        raise EngineMismatch(f"{entry.file}: {rtx_refuses(machine.gpu.compute_capability)}")
    if entry.library == "tensorrt_lean" and entry.flags.strip_weights:
        raise EngineMismatch(
            f"{entry.file} has no weights, and the lean runtime cannot add them: it has no refitter; "
            "export without --strip-weights, or without --lean"
        )
    step = bundle.manifest.steps.get(entry.variant)
    files = bundle.manifest.files
    here: dict[str, Any] = {
        "platform": machine.platform,
        "library_version": library_version(_LIBRARIES.get(entry.library, (entry.library,))[0]),
        "compute_capability": machine.gpu.compute_capability if machine.gpu else None,
        "step_sha256": files[entry.onnx].sha256 if entry.onnx in files else None,
        "decide_sha256": files[bundle.manifest.decide].sha256 if bundle.manifest.decide in files else None,
        "weights_sha256": tuple(files[name].sha256 for name in step.weights) if step else None,
    }
    for field, value in here.items():
        built = getattr(entry, field)
        if built != value and not _compatible(entry, field, value):
            later = field == "library_version" and entry.flags.version_compatible
            raise EngineMismatch(
                f"{entry.file}: {field} is {built!r} in the engine and {value!r} here; "
                f"{'install that one or a later one of its major version, or ' if later else ''}rebuild it with: "
                f"{_rebuild(entry, bundle, here['compute_capability'] or entry.compute_capability)}"
            )


def _compatible(entry: EngineEntry, field: str, value: str | None) -> bool:
    """Whether the build flags allow this machine's `value` of `field` to differ from the builder's."""
    if value is None:
        return False
    if field == "library_version" and entry.flags.version_compatible:
        built, here = _numbers(entry.library_version), _numbers(value)
        return here[:1] == built[:1] and here >= built
    if field == "compute_capability" and entry.flags.hardware_compatible:
        return _numbers(value) >= _AMPERE
    if field == "compute_capability" and entry.compute_capability == PORTABLE:
        return runs_on(PORTABLE, value)
    return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _rebuild(entry: EngineEntry, bundle: Bundle, capability: str) -> str:
    """The command that rebuilds the engine for compute capability `capability`.

    It has `--force`, because nothing but the machine may differ. TensorRT builds for the present GPU without an option.
    """
    unasked = any(engine.target == "tensorrt" for engine in bundle.manifest.engines)
    fits = entry.compute_capability == PORTABLE and (capability == PORTABLE or runs_on(PORTABLE, capability))
    added = () if unasked or fits else (f"--compute-capability={capability}",)
    return export_command(bundle.manifest.provenance, bundle.directory, *added, "--force")


def _plan_name(entry: EngineEntry) -> str:
    plugin = "" if entry.attention == "native" else f"-{entry.attention}"
    return f"{entry.library.replace('_', '-')}-{entry.variant}-{label(entry.compute_capability)}{plugin}"


def _plan_obstacle(entry: EngineEntry, bundle: Bundle, machine: Machine) -> str | None:
    if missing := missing_library(entry, machine):
        return missing
    try:
        require_match(entry, bundle, machine)
    except EngineMismatch as error:
        return str(error)
    return None


def missing_library(entry: EngineEntry, machine: Machine) -> str | None:
    """What this machine lacks to run any plan of the entry's library; None if nothing is missing."""
    if machine.gpu is None:
        return machine.why_no_gpu
    if entry.library not in _LIBRARIES:
        return f"no library {entry.library!r} is known to this version of dpad"
    distribution, extra = _LIBRARIES[entry.library]
    for needed in (distribution, "cuda-bindings"):
        if library_version(needed) is None:
            return f"{needed} is not installed ({install(extra)})"
    return None


def _compiled_obstacle(device: str, machine: Machine) -> str | None:
    for needed in ("torch", "safetensors", *(["triton"] if device == "cuda" else [])):
        if library_version(needed) is None:
            return f"{needed} is not installed ({install('torch')})"
    return machine.why_no_gpu if device == "cuda" and machine.gpu is None else None


def _onnxruntime_obstacle(provider: str, machine: Machine) -> str | None:
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed (pip install onnxruntime)"
    from dpad.runtime.engines.onnx_session import require_provider

    try:
        require_provider(provider)
    except EngineUnavailable as error:
        return str(error)
    if provider == "cuda" and library_version("cuda-bindings") is None:
        return f"cuda-bindings is not installed ({install('gpu')})"
    return machine.why_no_gpu if provider == "cuda" and machine.gpu is None else None
