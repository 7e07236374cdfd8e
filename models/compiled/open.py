"""`open_compiled`: opens an engine that runs a bundle's step compiled by PyTorch.

    engine = open_compiled(bundle)                       # on the first GPU, in bfloat16 or float16
    engine = open_compiled(bundle, "float32", "cpu")     # the same with Inductor's C++ backend, for tests

Compiled code is kept in the user's cache folder, or in TORCHINDUCTOR_CACHE_DIR, and reused the next time. Nothing is
compiled before the first step or `engine.warm_up`.
"""

import os
import shutil
import sysconfig
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from dpad.models.checkpoint.checkpoint import parse_config
from dpad.models.compiled.device import TorchDevice
from dpad.models.compiled.program import TorchDecide, TorchProgram
from dpad.models.compiled.weights import load_merged
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import DYNAMIC, rows_dtype, suffix
from dpad.runtime.engines import user_cache
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.errors import EngineUnavailable

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_PREFERRED = {"cuda": ("bfloat16", "float16"), "cpu": ("float32",)}
_COMPILERS = {"cuda": ("gcc", "clang", "cc"), "cpu": ("g++", "clang++", "c++")}  # for kernels' launchers; for all code


def open_compiled(
    bundle: Bundle,
    variant: str | None = None,
    device: str = "cuda",
    slots: int | None = None,
    *,
    compiled: bool = True,
    cuda_graphs: bool = True,
) -> GpuEngine:
    """Open a step of `bundle` from its own weights.

    Args:
        bundle: a checked bundle.
        variant: variant of a step in the bundle. Default: bfloat16, or else float16, on a GPU; float32 on a CPU.
        device: "cuda" or "cpu".
        slots: size of the pool, see `pool_size`.
        compiled: False runs the same code uncompiled and slowly, for comparison.
        cuda_graphs: whether to record steps on a GPU.

    Raises:
        InvalidRequest: `slots` is not a size, or memory has no room for it.
        EngineUnavailable: there is no GPU, no compiler, or no such step with weights that PyTorch can read.
    """
    if compiled:
        _require_compiler(device)
        _keep_compiled()
    steps = {name: step for name, step in bundle.manifest.steps.items() if name != DYNAMIC}  # only for ONNX Runtime
    variant = variant or next((name for name in _PREFERRED[device] if name in steps), _PREFERRED[device][0])
    if variant not in steps:
        raise EngineUnavailable(
            f"{bundle.directory} has no step {variant} with weights that PyTorch can read; export it with --dtype "
            f"{rows_dtype(variant)}"
        )
    contract, rows = bundle.manifest.contract, rows_dtype(variant)
    shards = [bundle.path(name) for name in steps[variant].weights]
    with ExitStack() as opened:
        place = TorchDevice(device)
        opened.callback(place.close)
        place.make_current()
        architecture, config = parse_config(bundle.manifest.model_config)
        with place.running():  # orders the copies before the steps; a lack of memory raises EngineError
            model = load_merged(architecture, config, shards, getattr(torch, rows), place.device)
        step, decide = TorchProgram(model, contract, rows, place, compiled), TorchDecide(contract, place)
        opened.callback(step.close)
        name, owned = f"torch-{device}{suffix(variant)}", opened.pop_all()
    return GpuEngine(name, contract, rows, place, step, decide, owned, slots=slots, cuda_graphs=cuda_graphs)


def _require_compiler(device: str) -> None:
    """Raise `EngineUnavailable` if there is no compiler; on a GPU Triton needs one for its kernels' launchers."""
    own = os.environ.get("CC" if device == "cuda" else "CXX")
    names = (own,) if own else _COMPILERS[device]
    if not any(shutil.which(name) for name in names):
        raise EngineUnavailable(
            f"engine torch-{device} compiles its step and finds no compiler ({' or '.join(names)}): install one, for "
            "example with apt-get install g++"
        )
    if device == "cuda" and not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise EngineUnavailable(
            f"engine torch-{device} needs Python.h, which Triton's launchers include: install Python's headers, for "
            "example with apt-get install python3-dev"
        )


def _keep_compiled() -> None:
    """Let Inductor cache in the user's cache folder, unless another one is set or this one cannot be written.

    Its own default is a temporary folder, which it also writes into the environment.
    """
    with suppress(OSError, RuntimeError, KeyError):  # there is no home folder, or no user name
        if _CACHE in os.environ and os.environ[_CACHE] != default_cache_dir():
            return
        folder = user_cache.folder() / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[_CACHE] = str(folder)
