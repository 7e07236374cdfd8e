"""Launches the compiled PTX through the CUDA driver alone, as a TensorRT engine does.

Nothing of Triton's launcher takes part: inputs, 32-bit integers, outputs, in the order that
the plugin prescribes. Needs cuda-bindings.
"""

import ctypes
from typing import Any

import torch

from dpad.plugins import tiling
from dpad.plugins.attention import definition
from dpad.plugins.compile import CompiledKernel, compile_attend, compile_combine
from dpad.plugins.tiling import Shape, Strides
from gpu.kernels import LIMITS, Inputs, make_inputs, relative_error

_SHARED = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"


def correctness(capability: str) -> dict[str, Any]:
    """Every tile, in one launch and in parts, both dtypes, against the definition."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # makes the context current
    errors = {}
    for dtype, limit in LIMITS.items():
        inputs = make_inputs(50, 300, 8, 2, 128, dtype, batch=2, pads=True)
        wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]
        want = definition(*wide, 0.1)
        for tile in tiling.tiles(capability):
            for splits in (1, 3):
                out = _attend(capability, inputs, 0.1, tile, splits)
                name = f"{str(dtype).removeprefix('torch.')} m{tile.block_m} splits {splits}"
                errors[name] = {"relative_rms": relative_error(out, want), "limit": limit}
    passed = all(entry["relative_rms"] <= entry["limit"] for entry in errors.values())
    return {"cases": errors, "passed": passed}


def _attend(capability: str, inputs: Inputs, scale: float, tile: tiling.Tile, splits: int) -> torch.Tensor:
    query, key, _, key_cache, _, chosen, positions = inputs
    batch, rows, heads, size = query.shape
    dtype = str(query.dtype).removeprefix("torch.")
    shape = Shape(batch, rows, chosen.shape[1], key_cache.shape[1], heads, key.shape[2])
    per_split = tiling.tiles_per_split(shape, tile, splits, tiling.PROCESSORS[capability])
    numbers = tiling.attend_integers(shape, Strides.contiguous(shape), tiling.scale_bits(scale), splits, per_split)
    kernel = compile_attend(capability, dtype, size, tile, partial=splits > 1)
    rows_in = [*inputs[:5], chosen.int(), positions.int()]
    grid = (tiling.row_tiles(shape, tile), shape.kv_heads, batch * splits)
    out = torch.full_like(query, float("nan"))
    if splits == 1:
        _launch(kernel, grid, rows_in, list(numbers.values()), [out])
        return out
    partial = torch.full((splits, *out.shape), float("nan"), device="cuda")
    log_weight = torch.full((splits, batch, rows, heads), float("nan"), device="cuda")
    _launch(kernel, grid, rows_in, list(numbers.values()), [partial, log_weight])
    total = batch * rows * heads
    combine = compile_combine(capability, dtype, size)
    grid = (tiling.ceil_div(total, tiling.COMBINE_ROWS), 1, 1)
    _launch(combine, grid, [partial, log_weight], [total, splits], [out])
    return out


def _launch(
    kernel: CompiledKernel,
    grid: tuple[int, int, int],
    inputs: list[torch.Tensor],
    integers: list[int],
    outputs: list[torch.Tensor],
) -> None:
    from cuda.bindings import driver

    module = _checked(driver.cuModuleLoadData(kernel.ptx.encode() + b"\0"))
    function = _checked(driver.cuModuleGetFunction(module, kernel.entry.encode()))
    attribute = getattr(driver.CUfunction_attribute, _SHARED)
    _checked(driver.cuFuncSetAttribute(function, attribute, kernel.shared_bytes))
    kinds = ["pointer"] * len(inputs) + ["int32"] * len(integers) + ["pointer"] * len(outputs)
    if kinds != [kind for _, kind in kernel.parameters]:
        raise RuntimeError(f"{kernel.name} takes {kernel.parameters}")
    values = (*(t.data_ptr() for t in inputs), *integers, *(t.data_ptr() for t in outputs))
    types = tuple(ctypes.c_void_p if kind == "pointer" else ctypes.c_int for kind in kinds)
    stream = torch.cuda.current_stream().cuda_stream
    block = (kernel.threads, 1, 1)
    _checked(driver.cuLaunchKernel(function, *grid, *block, kernel.shared_bytes, stream, (values, types), 0))
    torch.cuda.synchronize()
    _checked(driver.cuModuleUnload(module))


def _checked(result: Any) -> Any:
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"the CUDA driver gave {status.name}")
    return values[0] if values else None
