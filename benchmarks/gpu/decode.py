"""Whole decodes on the GPU: the eager engine over the kernel, and every compiled engine that runs here."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from dpad.export.hub import resolve
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import run
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.machine import Machine
from dpad.runtime.engines.select import open_engine
from gpu.timing import DEVICE

PROMPTS = ([2, 30, 41, 52], [2, 17, 80, 11, 46, 71, 8])
LENGTH = 128


def canvases(engine: Engine, cache: str) -> tuple[np.ndarray[Any, Any], float]:
    """All tokens of two unequal prompts that run together, and milliseconds a step inside the engine."""
    options = GenerationOptions(gen_length=LENGTH, cache=cache, early_termination=False)
    options.check(engine.contract)
    sequences = [Sequence(Request(tuple(prompt)), options, engine.contract) for prompt in PROMPTS]
    seconds = [event.engine_seconds for _, event in run(engine, sequences)]
    return np.concatenate([sequence.canvas for sequence in sequences]), 1e3 * median(seconds)


def torch_engine(device: str, dtype: torch.dtype) -> TorchEngine:
    """The eager engine over the embedded checkpoint."""
    from dpad.export.pipeline import make_contract
    from dpad.export.settings import ExportSettings

    checkpoint = Checkpoint.open(resolve("tiny").directory)
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, dtype).to(device)
    contract = make_contract(checkpoint, ExportSettings().resolved(checkpoint))
    return TorchEngine(model, contract, str(dtype).removeprefix("torch."))


def eager() -> dict[str, Any]:
    """16-bit decodes through the kernel: share of tokens equal to float32 on the CPU.

    Rounding turns near ties, and a changed token changes what follows: the share in 16 bit is
    for people to read; float32 on the GPU must give the same text but for such a tie.
    """
    results: dict[str, Any] = {}
    reference = torch_engine("cpu", torch.float32)
    expected = {cache: canvases(reference, cache)[0] for cache in CACHES}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        engine = torch_engine(DEVICE, dtype)
        name = str(dtype).removeprefix("torch.")
        results[name] = {}
        for cache in CACHES:
            tokens, step_ms = canvases(engine, cache)
            results[name][cache] = {"equal": float((tokens == expected[cache]).mean()), "step_ms": step_ms}
    results["passed"] = all(entry["equal"] >= 0.99 for entry in results["float32"].values())
    return results


def compiled() -> dict[str, Any]:
    """Every engine of a bundle of the embedded checkpoint: its decode, or why it cannot run here."""
    from dpad.export.pipeline import export_bundle
    from dpad.export.progress import Progress
    from dpad.export.settings import ExportSettings

    modules = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
    targets = [target for target, module in modules.items() if find_spec(module)]
    results: dict[str, Any] = {t: {"skipped": f"{modules[t]} is not installed"} for t in modules if t not in targets}
    reference = torch_engine("cpu", torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        for attention in ("native", "plugin"):
            wanted = tuple(t for t in targets if attention == "native" or t == "tensorrt")
            if attention == "plugin" and not wanted:
                continue
            settings = ExportSettings(("onnx", *wanted), ("float32", "float16"), attention=attention)
            try:
                bundle, _ = export_bundle("tiny", Path(folder) / attention, settings, Progress())
            except Exception as error:
                results[f"build {attention}"] = {"error": f"{type(error).__name__}: {error}"[:2000]}
                continue
            results |= {f"{name} {attention}": found for name, found in _engines(bundle, reference).items()}
    return results


def _engines(bundle: Bundle, reference: Engine) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for candidate in candidates(bundle, Machine.current()):
        if candidate.name == "onnxruntime-cpu":
            continue
        if candidate.obstacle is not None:
            answer = f"; {_asked(bundle, candidate.file)}" if candidate.name.startswith("tensorrt-rtx") else ""
            results[candidate.name] = {"skipped": candidate.obstacle + answer}
            continue
        try:
            results[candidate.name] = {}
            for cache in CACHES:
                with open_engine(bundle, candidate.name) as engine:
                    if cache not in engine.contract.caches:
                        continue
                    tokens, step_ms = canvases(engine, cache)
                equal = float((tokens == canvases(reference, cache)[0]).mean())
                results[candidate.name][cache] = {"equal": equal, "step_ms": step_ms}
        except Exception as error:
            results[candidate.name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return results


def _asked(bundle: Bundle, plan: str) -> str:
    """What TensorRT-RTX's runtime itself says of a plan that does not fit: whether it takes this device at all."""
    import tensorrt_rtx

    runtime = tensorrt_rtx.Runtime(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    data = bundle.path(plan).read_bytes()
    validity, diagnostics = runtime.get_engine_validity(data)
    opened = runtime.deserialize_cuda_engine(data) is not None
    return f"TensorRT-RTX's runtime says {validity.name} ({diagnostics}), and {'opens' if opened else 'refuses'} it"
