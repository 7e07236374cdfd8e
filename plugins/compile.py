"""Compiles the kernels ahead of time; no GPU is needed.

    kernel = compile_attend("9.0", "bfloat16", head_size=128, tile=Tile(64), partial=False)
    kernel.ptx, kernel.cubin, kernel.registers, kernel.parameters

Triton appends its own parameters to a kernel (pointers to scratch memory). A launcher that passes only the kernel's
arguments would leave them undefined. So the PTX is changed to have no such parameters, and a kernel that reads them is
refused. Kernels that need clusters, a cooperative launch or tensor descriptors are refused too, because such a launcher
cannot set them up.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from dpad.plugins import tiling, triton_kernel
from dpad.plugins.checks import check_kernel
from dpad.plugins.errors import KernelCompileError
from dpad.plugins.tiling import Tile

# The oldest PTX version that supports each target, so that the oldest driver for the target can load the kernel.
PTX_VERSIONS = {"8.0": 80, "8.6": 80, "8.9": 80, "9.0": 80, "10.0": 86, "12.0": 87}
SHARED_LIMITS = {"8.0": 163, "8.6": 99, "8.9": 99, "9.0": 227, "10.0": 227, "12.0": 99}  # KiB per program

_POINTEES = {"float16": "fp16", "bfloat16": "bf16"}
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class CompiledKernel:
    """PTX and machine code of one kernel, and the facts that a launcher needs.

    Attributes:
        entry: name of the function and of its files; unique, because TensorRT may identify kernels by it.
        capability, dtype: the compute capability and the dtype that it was compiled for.
        parameters: (name, "pointer" or "int32") in the order of the launch.
        constants: names and values of the compile-time constants.
        threads, shared_bytes: of one program; a launcher must opt in to shared memory over 48 KiB.
        registers, spill_bytes, stack_bytes: per thread, as ptxas reports them.
        notes: ptxas's performance notes, mostly about matrix products that wait for each other.
        triton: Triton's version.
    """

    entry: str
    capability: str
    dtype: str
    constants: dict[str, Any]
    parameters: tuple[tuple[str, str], ...]
    threads: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    notes: tuple[str, ...]
    triton: str
    ptx: str
    cubin: bytes

    def metadata(self) -> dict[str, Any]:
        """Everything but the code, as plain values."""
        return {key: value for key, value in asdict(self).items() if key not in ("ptx", "cubin")}


def compile_attend(
    capability: str, dtype: str, head_size: int, tile: Tile, partial: bool, causal: bool = False
) -> CompiledKernel:
    """Compile `attend` with 32-bit indices; `partial` selects the variant for splits over keys, `causal` for blocks.

    Raises `AttentionError` for a head size or dtype that the kernel cannot compute, and `KernelCompileError` if a
    plain launcher could not run the result.
    """
    check_kernel(head_size, dtype)
    pointee = _POINTEES[dtype]
    types = dict.fromkeys(("query", "key", "value", "key_cache", "value_cache"), f"*{pointee}")
    types |= dict.fromkeys(("cache_indices", "gather_indices"), "*i32")
    types |= {"output": "*fp32" if partial else f"*{pointee}", "log_weight": "*fp32" if partial else "constexpr"}
    constants = tiling.attend_constants(head_size, tile, partial, causal) | ({} if partial else {"log_weight": None})
    cut = f"m{tile.block_m}_n{tile.block_n}_w{tile.warps}_s{tile.stages}"
    name = f"attend_{dtype}_d{head_size}_{cut}{'_partial' if partial else ''}{'_causal' if causal else ''}"
    return _compile(name, triton_kernel.attend, capability, dtype, types, constants, tile.warps, tile.stages)


def compile_combine(capability: str, dtype: str, head_size: int, splits: int = tiling.MAX_SPLITS) -> CompiledKernel:
    """Compile `combine`, which adds up to `splits` parts; errors as in `compile_attend`."""
    check_kernel(head_size, dtype)
    types = {"partial": "*fp32", "log_weight": "*fp32"} | dict.fromkeys(("like", "output"), f"*{_POINTEES[dtype]}")
    constants = tiling.combine_constants(head_size, splits)
    name = f"combine_{dtype}_d{head_size}_p{constants['SPLITS']}"
    return _compile(name, triton_kernel.combine, capability, dtype, types, constants, tiling.COMBINE_WARPS, 2)


def require_target(capability: str) -> None:
    """Raise `KernelCompileError` for a compute capability that the kernels are not compiled for."""
    if capability not in tiling.CAPABILITIES:
        known = ", ".join(tiling.CAPABILITIES)
        raise KernelCompileError(f"compute capability {capability} is not one of {known}; use native attention")


def _compile(
    name: str,
    function: Any,
    capability: str,
    dtype: str,
    types: dict[str, str],
    constants: dict[str, Any],
    warps: int,
    stages: int,
) -> CompiledKernel:
    if not isinstance(function, triton.JITFunction):
        raise KernelCompileError("Triton's interpreter is on; unset TRITON_INTERPRET to compile")
    require_target(capability)
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    parameters = tuple(
        (n, "int32" if signature[n] == "i32" else "pointer") for n in names if signature[n] != "constexpr"
    )
    aligned = {(place,): _ALIGNED for place, n in enumerate(names) if signature[n].startswith("*")}
    places = {(names.index(key),): value for key, value in constants.items()}
    architecture = int(capability.replace(".", ""))
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": tiling.MAX_REGISTERS}
    options["ptx_version"] = PTX_VERSIONS[capability]
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # it would contain paths of this machine
        compiled = triton.compile(
            ASTSource(function, signature, places, aligned), target=GPUTarget("cuda", architecture, 32), options=options
        )
    _require_plain(name, compiled.metadata)
    entry = f"{name}_sm{architecture}"
    ptx = renamed(without_hidden_parameters(compiled.asm["ptx"], len(parameters)), compiled.metadata.name, entry)
    cubin, report = _assemble(ptx, architecture)
    return CompiledKernel(
        entry=entry,
        capability=capability,
        dtype=dtype,
        constants=constants,
        parameters=parameters,
        threads=compiled.metadata.num_warps * 32,
        shared_bytes=compiled.metadata.shared,
        registers=_reported(report, r"Used (\d+) registers"),
        spill_bytes=_reported(report, r"(\d+) bytes spill stores"),
        stack_bytes=_reported(report, r"(\d+) bytes stack frame"),
        notes=tuple(re.findall(r"\(C\d+\) .*", report)),
        triton=triton.__version__,
        ptx=ptx,
        cubin=cubin,
    )


def _require_plain(name: str, metadata: Any) -> None:
    """Raise `KernelCompileError` for features that a launcher of plain kernels cannot set up."""
    found = {
        "global scratch memory": metadata.global_scratch_size,
        "profile scratch memory": metadata.profile_scratch_size,
        "thread block clusters": metadata.num_ctas > 1,
        "a cooperative launch": metadata.launch_cooperative_grid,
        "programmatic dependent launch": metadata.launch_pdl,
        "tensor descriptors": getattr(metadata, "tensordesc_meta", None),
    }
    if used := [what for what, present in found.items() if present]:
        raise KernelCompileError(f"{name} would need {', '.join(used)}, which a plugin's launch cannot provide")


def without_hidden_parameters(ptx: str, count: int) -> str:
    """Reduce the entry's parameters in `ptx` to the first `count`; raises `KernelCompileError` if it reads others."""
    entry = re.search(r"\.visible \.entry (\w+)\(\n(.*?)\n\)", ptx, re.DOTALL)
    if entry is None:
        raise KernelCompileError("the PTX has no entry")
    parameters = entry[2].split(",\n")
    if len(parameters) < count:
        raise KernelCompileError(f"{entry[1]} has {len(parameters)} parameters, but its source has {count}")
    for place in range(count, len(parameters)):
        if f"[{entry[1]}_param_{place}]" in ptx:
            raise KernelCompileError(f"{entry[1]} reads parameter {place}, which only Triton's launcher passes")
    return ptx.replace(entry[2], ",\n".join(parameters[:count]), 1)


def renamed(ptx: str, entry: str, name: str) -> str:
    """Rename the function `entry` in `ptx`, and its parameters, to `name`."""
    return re.sub(rf"\b{entry}(?=_param_\d|\b)", name, ptx)


def _assemble(ptx: str, architecture: int) -> tuple[bytes, str]:
    """Assemble PTX; returns the machine code and ptxas's report."""
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [get_ptxas(architecture).path, "-v", f"--gpu-name={sm_arch_from_capability(architecture)}"]
        ran = subprocess.run(  # noqa: S603
            [*command, str(source), "-o", str(target)], capture_output=True, text=True, check=False
        )
        if ran.returncode:
            raise KernelCompileError(f"ptxas refuses the kernel: {ran.stderr}")
        return target.read_bytes(), ran.stderr


def _reported(report: str, pattern: str) -> int:
    found = re.search(pattern, report)
    if found is None:
        raise KernelCompileError(f"ptxas did not report {pattern!r}:\n{report}")
    return int(found[1])


def compile_all(
    capabilities: Iterable[str], dtypes: Iterable[str], head_sizes: Iterable[int]
) -> Iterator[CompiledKernel]:
    """Compile every kernel that a launcher may choose; yields them one by one (about a second each)."""
    for capability, dtype, size in product(capabilities, dtypes, head_sizes):
        for causal, partial in product((False, True), (False, True)):
            for tile in tiling.tactics(capability, causal).values():
                yield compile_attend(capability, dtype, size, tile, partial, causal)
        yield compile_combine(capability, dtype, size)
