"""Launches the TensorRT plugins' kernels with the CUDA driver alone, as an engine does.

PTX, grid, shared memory, integers and the order of arguments come from the plugins' own launch functions; only symbolic
sizes are simulated (tests/plugin_api.py). Triton's launcher is not used. Needs cuda-bindings.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from plugin_api import Plugin, describe, launch_of, simulated_tensorrt

from dpad.plugins import tiling
from dpad.plugins.attention import definition
from dpad.plugins.trt_face import register_plugins
from gpu.kernels import LIMITS, Inputs, make_inputs, relative_error
from gpu.timing import DEVICE

_SHARED = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
_TRT = {torch.float16: "HALF", torch.bfloat16: "BF16", torch.float32: "FLOAT", torch.int32: "INT32"}
_TORCH = {name: dtype for dtype, name in _TRT.items()}


def correctness(capability: str) -> dict[str, Any]:
    """Compare every tactic, in one launch and in parts and in both dtypes, with the reference definition."""
    if DEVICE == "cuda":
        torch.zeros(1, device=DEVICE)  # makes the context current
    module, api = simulated_tensorrt()
    register_plugins(module, capability)
    errors = {}
    for dtype, limit in LIMITS.items():
        inputs = make_inputs(50, 300, 8, 2, 128, dtype, batch=2, pads=True)
        wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]
        want = definition(*wide, 0.1)
        for tactic, tile in tiling.tactics(capability).items():
            for splits in (1, 3):
                out = _attend(api.plugins, inputs, 0.1, tactic, splits)
                name = f"{str(dtype).removeprefix('torch.')} m{tile.block_m} n{tile.block_n} splits {splits}"
                errors[name] = {"relative_rms": relative_error(out, want), "limit": limit}
    passed = all(entry["relative_rms"] <= entry["limit"] for entry in errors.values())
    return {"cases": errors, "passed": passed}


def _attend(plugins: dict[str, Plugin], inputs: Inputs, scale: float, tactic: int, splits: int) -> torch.Tensor:
    """Compute the op with its plugins, arranged as in a network."""
    rows = [*inputs[:5], inputs[5].int(), inputs[6].int()]
    bits = tiling.scale_bits(scale)
    fixed = [[2, 3]] * 3 + [[1, 2]] * 2 + [[], []]
    if splits == 1:
        return _run(plugins["dpad::attend"], rows, fixed, [bits, 0], tactic)[0]
    parts = _run(plugins["dpad::attend_parts"], rows, fixed, [bits, 0, splits], tactic)
    return _run(plugins["dpad::combine_parts"], [*parts, rows[0]], [[1], [], [2, 3]], [splits], 0)[0]


def _run(
    plugin: Plugin, inputs: list[torch.Tensor], fixed: list[list[int]], numbers: list[int], tactic: int
) -> list[torch.Tensor]:
    """Launch one plugin; its outputs have the shapes that it declares and are NaN before the launch."""
    described = describe([list(tensor.shape) for tensor in inputs], fixed, [_TRT[tensor.dtype] for tensor in inputs])
    launch = launch_of(plugin, described, np.array(numbers, dtype=np.int32), tactic)
    outputs = [
        torch.full(shape, float("nan"), dtype=_TORCH[dtype], device=DEVICE) for shape, dtype in launch["outputs"]
    ]
    _launch(launch, inputs, outputs)
    return outputs


def _launch(launch: dict[str, Any], inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    """Launch a kernel with the arguments that TensorRT passes: inputs, 32-bit integers, outputs."""
    from cuda.bindings import driver

    module = _checked(driver.cuModuleLoadData(launch["ptx"].encode() + b"\0"))
    function = _checked(driver.cuModuleGetFunction(module, launch["entry"].encode()))
    _checked(driver.cuFuncSetAttribute(function, getattr(driver.CUfunction_attribute, _SHARED), launch["shared"]))
    values = (*(t.data_ptr() for t in inputs), *launch["integers"], *(t.data_ptr() for t in outputs))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    types = (pointer,) * len(inputs) + (integer,) * len(launch["integers"]) + (pointer,) * len(outputs)
    if [{pointer: "pointer", integer: "int32"}[kind] for kind in types] != launch["parameters"]:
        raise RuntimeError(f"the kernel takes {launch['parameters']}")
    stream = torch.cuda.current_stream().cuda_stream
    shape = (*launch["grid"], *launch["block"])
    _checked(driver.cuLaunchKernel(function, *shape, launch["shared"], stream, (values, types), 0))
    torch.cuda.synchronize()
    _checked(driver.cuModuleUnload(module))


def _checked(result: Any) -> Any:
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"the CUDA driver gave {status.name}")
    return values[0] if values else None
