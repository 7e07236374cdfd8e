"""`open_engine` opens a bundle with the best engine that runs on this machine, or with the one of a given name.

engine = open_engine(bundle, "auto")
"""

import os
from collections.abc import Callable
from importlib import import_module

from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.export_command import export_command
from dpad.runtime.bundle.variant import is_quantized, rows_dtype
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.candidates import Candidate, candidates, missing_library, require_match
from dpad.runtime.engines.machine import Machine
from dpad.runtime.errors import EngineUnavailable, InvalidRequest
from dpad.runtime.show import shown

AUTO = "auto"
EAGER = ("eager", "eager-cuda")  # opened by dpad.load, because the runtime does not import torch
_THREADS = 4  # most threads per processor: many more would wait for each other
# A function that compiles and opens a step, given the bundle, the variant, "cuda" or "cpu", and the size of the pool.
Compile = Callable[[Bundle, str, str, int | None], Engine]


def open_engine(
    bundle: Bundle, name: str = AUTO, threads: int = 0, slots: int | None = None, compile_step: Compile | None = None
) -> Engine:
    """Open the best engine, or the one called `name`; raises `EngineUnavailable` or `EngineMismatch`.

    `threads` are those of ONNX Runtime on a CPU; 0 is one per core. `slots` is the size of the pool of keys and values,
    see `pool_size`. `compile_step` compiles a step with torch; without it, engines that torch compiles are left out.
    """
    most = _THREADS * (os.cpu_count() or 1)
    threads = as_integer(threads, "threads")
    if not is_integer(threads) or not 0 <= threads <= most:
        raise InvalidRequest(
            f"threads {shown(threads)} must be an integer from 0 to {most}, {_THREADS} per processor of this machine"
        )
    machine = Machine.current()
    found = candidates(bundle, machine)
    if name == AUTO:
        usable = chosen_from(bundle, [each for each in found if compile_step or not each.compiled])
        if usable is None:
            raise EngineUnavailable(_nothing_runs(bundle, found))
        return _open(bundle, usable, threads, slots, compile_step)
    chosen = next((candidate for candidate in found if candidate.name == name), None)
    if chosen is None:
        known = ", ".join([AUTO, *(candidate.name for candidate in found), *EAGER])
        raise EngineUnavailable(f"{bundle.directory} has no engine {shown(name)} (it has {known})")
    if chosen.entry is not None and missing_library(chosen.entry, machine) is None:
        require_match(chosen.entry, bundle, machine)
    if chosen.obstacle is not None:
        raise EngineUnavailable(f"{name} cannot run here: {chosen.obstacle}")
    return _open(bundle, chosen, threads, slots, compile_step)


def chosen_from(bundle: Bundle, found: list[Candidate]) -> Candidate | None:
    """The candidate that `auto` opens: the first that runs on this machine; None if there is none.

    `auto` leaves out quantized steps, unless the bundle has no others, and steps that PyTorch compiles for a CPU. These
    are opened by name only.
    """
    exact = not all(is_quantized(variant) for variant in bundle.manifest.steps)
    return next(
        (
            each
            for each in found
            if each.obstacle is None and each.compiled != "cpu" and not (exact and is_quantized(each.variant))
        ),
        None,
    )


def _open(
    bundle: Bundle, candidate: Candidate, threads: int, slots: int | None, compile_step: Compile | None
) -> Engine:
    entry, path, contract = candidate.entry, bundle.path(candidate.file), bundle.manifest.contract
    if candidate.compiled:
        if compile_step is None:
            raise EngineUnavailable(f"{candidate.name} is compiled by torch; open the bundle with dpad.load")
        return compile_step(bundle, candidate.variant, candidate.compiled, slots)
    if entry is None:
        decide = bundle.path(bundle.manifest.decide)
        if candidate.provider == "cuda":
            from dpad.runtime.engines.onnx_cuda import open_onnx_cuda

            return open_onnx_cuda(path, contract, candidate.variant, decide=decide, slots=slots)
        from dpad.runtime.engines.onnx import OnnxEngine

        return OnnxEngine(path, contract, candidate.variant, threads, decide=decide, slots=slots)
    from dpad.runtime.engines.gpu.cuda import CudaDevice
    from dpad.runtime.engines.tensorrt.engine import open_trt_engine

    return open_trt_engine(
        import_module(entry.library),
        path,
        contract,
        rows_dtype(entry.variant),
        CudaDevice(),
        bundle.path(entry.onnx) if entry.flags.strip_weights else None,
        decide=bundle.path(entry.decide),
        slots=slots,
        name=candidate.name,
        host_code=entry.flags.version_compatible and not entry.flags.lean,
        kernel_cache=f"kernels-{bundle.manifest.files[entry.file].sha256[:32]}.cache",
    )


def _nothing_runs(bundle: Bundle, found: list[Candidate]) -> str:
    differs, slow = (f"runs, but {why}: choose it by name" for why in ("its results may differ", "slowly"))
    reasons = "".join(
        f"\n  {each.name}: {each.obstacle or (differs if is_quantized(each.variant) else slow)}" for each in found
    )
    command = export_command(bundle.manifest.provenance, bundle.directory, "--dtype=float32")
    return (
        f"nothing in {bundle.directory} runs on this machine:{reasons}\n"
        f"for a CPU, add a float32 step: {command}\n"
        "or, if torch is installed, use engine eager, which is slow"
    )
