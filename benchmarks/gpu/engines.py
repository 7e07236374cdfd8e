"""The engines of the embedded model that gpu-check tries, with the reason if one does not run here.

for entry in entries(session):
    entry.name, entry.obstacle, entry.expected
    with entry.open() as engine: ...
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import dpad
from dpad.export.hub import resolve
from dpad.export.pipeline import export_bundle, make_contract
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model, parse_config
from dpad.models.compiled.open import open_compiled
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.bundle.variant import FULL, variant_name, weights_of
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.candidates import Candidate, candidates
from dpad.runtime.engines.capability import PORTABLE, runs_on
from dpad.runtime.engines.machine import Machine, library_version
from gpu.session import Session
from gpu.timing import DEVICE
from gpu.worker import told

_PLANS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # target, name of the settings, settings
    ("tensorrt", "native", {}),
    ("tensorrt", "plugin", {"attention": "plugin"}),
    ("tensorrt", "lean", {"flags": BuildFlags(version_compatible=True, lean=True)}),
    ("tensorrt-rtx", "native", {}),
)
_SLOTS = 4096


@dataclass(frozen=True)
class Entry:
    """An engine for a step of the bundle.

    Attributes:
        name: name of the engine with the step's variant.
        obstacle: why it does not run here; None if it does.
        expected: whether it must run, because its library is installed and supports this device, or it was requested.
        weights: format of the layers' weights, from which differences to the checkpoint follow.
        open: opens the engine.
    """

    name: str
    obstacle: str | None
    expected: bool
    weights: str
    open: Callable[[], Engine]


def eager_engine(device: str, dtype: torch.dtype) -> TorchEngine:
    """The eager engine of the embedded checkpoint."""
    checkpoint = Checkpoint.open(resolve("tiny").directory, own=True)
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, dtype).to(device)
    contract = make_contract(checkpoint, ExportSettings().resolved(checkpoint))
    return TorchEngine(model, contract, str(dtype).removeprefix("torch."), _SLOTS)


def reference(bundle: Bundle, weights: str) -> TorchEngine:
    """The eager engine in float32 on the CPU, for the bundle's weights in the format `weights`."""
    variant = next(name for name in bundle.manifest.steps if weights_of(name) == weights)
    architecture, config = parse_config(bundle.manifest.model_config)
    shards = tuple(bundle.path(name) for name in bundle.manifest.steps[variant].weights)
    model = load_model(architecture, config, shards, torch.float32)
    return TorchEngine(model, bundle.manifest.contract, "float32", _SLOTS)


def tiny_bundle(session: Session) -> Bundle:
    """A bundle of the embedded model with every step that an engine here may need."""
    sizes = session.setup.sizes
    settings = ExportSettings(("onnx",), sizes.dtypes, weights=sizes.tiny_weights, max_length=sizes.tiny_length)
    return export_bundle("tiny", session.setup.folder / "tiny", settings, Progress())[0]


def entries(session: Session) -> Iterator[Entry]:
    """Every engine for a GPU, with its obstacle if any: full weights before packed ones, PyTorch's engine first."""
    bundle, asked = session.once(tiny_bundle), bool(session.setup.engines)
    own = [*_compiled(session, bundle), *_candidates(bundle)]
    whole, packed = ([entry for entry in own if (entry.weights == FULL) is kind] for kind in (True, False))
    for entry in chain(whole, _plans(session), packed):
        if session.wants(entry.name.partition(" ")[0]):
            yield replace(entry, expected=entry.expected or asked)


def _compiled(session: Session, bundle: Bundle) -> Iterator[Entry]:
    """The engines compiled by PyTorch: full weights in every dtype, packed weights in the first dtype."""
    first, *others = session.setup.sizes.dtypes
    packed = session.setup.sizes.tiny_weights[1:]
    for weights, dtype in [(FULL, first), *((FULL, other) for other in others), *((form, first) for form in packed)]:
        variant = variant_name(dtype, weights)
        suffix = "" if weights == FULL else f"-weights-{weights}"

        def opened(variant: str = variant) -> Engine:
            return open_compiled(bundle, variant, DEVICE, _SLOTS, compiled=DEVICE == "cuda")

        yield Entry(f"torch-{DEVICE}{suffix} ({dtype})", None, True, weights, opened)


def _candidates(bundle: Bundle) -> Iterator[Entry]:
    """The engines that the bundle lists: plans, and ONNX Runtime on the device."""
    others = ("torch-", "onnxruntime-cpu" if DEVICE == "cuda" else "onnxruntime-cuda")
    for candidate in candidates(bundle, Machine.current()):
        if candidate.name.startswith(others):
            continue

        def opened(candidate: Candidate = candidate) -> Engine:
            return dpad.load(bundle.directory, engine=candidate.name, verify_hashes=False, warm=False).engine

        obstacle = candidate.obstacle
        if obstacle and candidate.name.startswith("tensorrt-rtx"):
            obstacle = f"{obstacle}; {_asked(bundle.path(candidate.file))}"
        name, weights = f"{candidate.name} ({candidate.variant})", weights_of(candidate.variant)
        yield Entry(name, obstacle, obstacle is None or _expected(candidate.name), weights, opened)


def _plans(session: Session) -> Iterator[Entry]:
    """Plans, each in a bundle of its own, so that a builder that fails does not affect other engines."""
    for target, how, chosen in _PLANS:
        name, module = f"{target} {how}", target.replace("-", "_")
        if find_spec(module) is None or DEVICE == "cpu":
            why = "a CPU runs no plan" if find_spec(module) else f"{module} is not installed"
            yield Entry(name, why, False, FULL, _nothing)
            continue
        sizes, folder = session.setup.sizes, session.setup.folder / name.replace(" ", "-")
        settings = ExportSettings(("onnx", target), sizes.dtypes[:1], max_length=sizes.tiny_length, **chosen)
        try:
            bundle, _ = export_bundle("tiny", folder, settings, Progress())
        except Exception as error:
            yield Entry(name, f"its plan could not be built: {told(error)}", _expected(target), FULL, _nothing)
            continue
        yield from (entry for entry in _candidates(bundle) if entry.name.startswith(target))


def _expected(name: str) -> bool:
    """Whether an engine should run despite its obstacle: its library is installed and supports this device."""
    if name.startswith("onnxruntime-cuda"):
        return library_version("onnxruntime-gpu") is not None
    if name.startswith("tensorrt-lean"):
        return library_version("tensorrt-lean") is not None
    gpu = Machine.current().gpu
    if name.startswith("tensorrt-rtx"):
        return gpu is not None and runs_on(PORTABLE, gpu.compute_capability)
    return True


def _asked(plan: Path) -> str:
    """The verdict of TensorRT-RTX's own runtime on a plan that does not fit this device."""
    import tensorrt_rtx

    runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    data = plan.read_bytes()
    validity, diagnostics = runtime.get_engine_validity(data)
    opened = runtime.deserialize_cuda_engine(data) is not None
    return f"TensorRT-RTX's runtime says {validity.name} ({diagnostics}), and {'opens' if opened else 'refuses'} it"


def _nothing() -> Engine:
    raise RuntimeError("an engine with an obstacle is not opened")
