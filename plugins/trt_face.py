"""The op in TensorRT: quickly deployable plugins around the Triton kernels.

    register_plugins(tensorrt, "9.0")      # before a model with these nodes is parsed

    dpad::attend(rows..., cache_indices, gather_indices; numbers=[scale_bits, block]) -> output
    dpad::attend_parts(the same; numbers=[scale_bits, block, splits]) -> partial [rows, D], log_weight [rows]
    dpad::combine_parts(partial, log_weight, query; numbers=[splits]) -> output

The plugins' PTX is embedded in the engine (ahead-of-time implementation), which then needs neither Python nor Triton.
TensorRT allows such a plugin one kernel and no workspace, so splitting over keys takes two plugins, with the parts as
tensors between them. There are as many parts as a shape needs to fill the GPU, at most `splits`. Kernel parameters must
be inputs, 32-bit integers and outputs, in this order. Indices are int32, because plugins accept no int64. A plugin's
attributes are one list of integers, because every parser version passes that on unchanged.

Each tile is a tactic that the builder times; see `tiling.tactics`. Signatures follow tensorrt.plugin's rules: no
defaults, and annotations that are types, not strings.
"""

import hashlib
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from dpad.plugins import tiling
from dpad.plugins.errors import KernelCompileError
from dpad.plugins.tiling import Arithmetic, Shape, Strides

NAMESPACE = "dpad"
PLUGIN_VERSION = "1"  # the version under which TensorRT registers quickly deployable plugins

_HALF = "FP16|BF16"
_target: dict[str, str] = {}
_registered: set[str] = set()


def register_plugins(trt: ModuleType, capability: str) -> None:
    """Register the plugins for engines of a compute capability; a second call only changes the capability.

    Raises `KernelCompileError` for a capability without kernels, and for bindings that misread a plugin's numbers.
    """
    from dpad.plugins.compile import require_target  # building needs Triton; running the engine does not

    require_target(capability)
    _require_lists(trt)
    _target["capability"] = capability
    if trt.__name__ in _registered:
        return
    trtp = import_module(f"{trt.__name__}.plugin")
    _register(trtp, "attend", _describe_attend(trtp), _attend_choices(trtp, _HALF), _launch_attend(trt, trtp, False))
    parts = _attend_choices(trtp, "FP32", "FP32")
    _register(trtp, "attend_parts", _describe_parts(trt, trtp), parts, _launch_attend(trt, trtp, True))
    _register(trtp, "combine_parts", _describe_combine(trtp), _combine_choices(trtp), _launch_combine(trt, trtp))
    _registered.add(trt.__name__)


def _require_lists(trt: ModuleType) -> None:
    """Refuse bindings that read the first number of a list in place of every other.

    Bindings before TensorRT 10.16 do so with numpy 2 (tried: 10.9 to 10.15): they would pass the scale as the block
    length.
    """
    numbers = np.array([1, 2], dtype=np.int32)
    if trt.PluginField("numbers", numbers, trt.PluginFieldType.INT32).data.tolist() != [1, 2]:
        raise KernelCompileError(
            f"{trt.__name__} {trt.__version__} reads a plugin's numbers wrongly with numpy {np.__version__}; use "
            "TensorRT 10.16 or later, or native attention"
        )


def fingerprint() -> str:
    """Digest of what determines the plugins' code: their sources and the version of Triton."""
    try:
        digest = hashlib.sha256(metadata.version("triton").encode())
    except metadata.PackageNotFoundError:
        digest = hashlib.sha256()  # the build reports that Triton is missing
    for name in ("triton_kernel", "tiling", "compile", "trt_face"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _register(trtp: Any, name: str, describe: Any, choices: Any, launch: Any) -> None:
    plugin = f"{NAMESPACE}::{name}"
    trtp.register(plugin)(describe)
    trtp.autotune(plugin)(choices)
    trtp.aot_impl(plugin)(launch)


def _typed(function: Callable[..., Any], trtp: Any, outputs: int) -> Callable[..., Any]:
    """Add the annotations that `register` reads; their types exist only if TensorRT is installed."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    types: dict[str, Any] = dict.fromkeys(names, trtp.TensorDesc) | {"numbers": npt.NDArray[np.int32]}
    types["return"] = trtp.TensorDesc if outputs == 1 else GenericAlias(tuple, (trtp.TensorDesc,) * outputs)
    function.__annotations__ = types
    return function


def _launches(function: Callable[..., Any], trtp: Any) -> Callable[..., Any]:
    function.__annotations__ = {"return": tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]}
    return function


def _describe_attend(trtp: Any) -> Any:
    def describe(query, key, value, key_cache, value_cache, cache_indices, gather_indices, numbers):
        return query.like()

    return _typed(describe, trtp, 1)


def _describe_parts(trt: Any, trtp: Any) -> Any:
    def describe(query, key, value, key_cache, value_cache, cache_indices, gather_indices, numbers):
        rows = tiling.part_rows(_rows(query), int(numbers[2]), _target["capability"], _arithmetic(trtp))
        partial = trtp.from_shape_expr((rows, query.shape_expr[3]), dtype=trt.float32)
        return partial, trtp.from_shape_expr((rows,), dtype=trt.float32)

    return _typed(describe, trtp, 2)


def _describe_combine(trtp: Any) -> Any:
    def describe(partial, log_weight, query, numbers):
        return query.like()

    return _typed(describe, trtp, 1)


def _attend_choices(trtp: Any, *written: str) -> Any:
    """The tactics, one per tile; `written` are the types of the outputs."""

    def choices(query, key, value, key_cache, value_cache, cache_indices, gather_indices, numbers, outputs):
        tactics = list(tiling.tactics(_target["capability"], int(numbers[1]) > 0))
        return [trtp.AutoTuneCombination(", ".join([*[_HALF] * 5, "INT32", "INT32", *written]), "LINEAR", tactics)]

    return choices


def _combine_choices(trtp: Any) -> Any:
    def choices(partial, log_weight, query, outputs):
        return [trtp.AutoTuneCombination(f"FP32, FP32, {_HALF}, {_HALF}", "LINEAR")]

    return choices


def _launch_attend(trt: Any, trtp: Any, partial: bool) -> Any:
    """The function that returns entry, PTX, launch and integers of `attend`, whole or in parts."""

    def launch(query, key, value, key_cache, value_cache, cache_indices, gather_indices, numbers, outputs, tactic):
        from dpad.plugins.compile import compile_attend

        capability, number = _target["capability"], _arithmetic(trtp)
        bits, block, *splits = numbers.tolist()
        tile = tiling.tactics(capability, block > 0)[tactic]
        batch, rows, heads, size = query.shape_expr
        cached, slots, kv_heads = (
            cache_indices.shape_expr[1],
            key_cache.shape_expr[0],
            key.shape_expr[2].constant_value(),
        )
        shape = Shape(batch, rows, cached, slots, heads.constant_value(), kv_heads)
        parts = tiling.most_parts(_rows(query), *splits, capability, number) if partial else 1
        kernel = compile_attend(capability, _dtype(trt, query), size.constant_value(), tile, partial, block > 0)
        per_split = tiling.tiles_per_split(shape, tile, parts, tiling.PROCESSORS[capability], number)
        grid = (tiling.row_tiles(shape, tile, number), kv_heads, batch * parts)
        integers = tiling.attend_integers(shape, Strides.contiguous(shape), bits, block, parts, per_split)
        return kernel.entry, kernel.ptx, _launch(trtp, kernel, grid), _integers(trtp, integers)

    return _launches(launch, trtp)


def _launch_combine(trt: Any, trtp: Any) -> Any:
    def launch(partial, log_weight, query, numbers, outputs, tactic):
        from dpad.plugins.compile import compile_combine

        capability, [splits], rows = _target["capability"], numbers.tolist(), _rows(query)
        kernel = compile_combine(capability, _dtype(trt, query), query.shape_expr[3].constant_value(), splits)
        grid = (trtp.cdiv(rows, tiling.COMBINE_ROWS), 1, 1)
        integers = {"rows": rows, "splits": tiling.most_parts(rows, splits, capability, _arithmetic(trtp))}
        return kernel.entry, kernel.ptx, _launch(trtp, kernel, grid), _integers(trtp, integers)

    return _launches(launch, trtp)


def _arithmetic(trtp: Any) -> Arithmetic:
    """The operations on symbolic sizes. A number cannot be divided by one, so it is made symbolic first."""
    return Arithmetic(trtp.cdiv, trtp.max, trtp.min, lambda total, part: (part * 0 + total) // part)


def _rows(query: Any) -> Any:
    """Output rows B · Q · H, symbolic."""
    return query.shape_expr[0] * query.shape_expr[1] * query.shape_expr[2]


def _dtype(trt: Any, tensor: Any) -> str:
    return "bfloat16" if tensor.dtype == trt.bfloat16 else "float16"


def _launch(trtp: Any, kernel: Any, grid: tuple[Any, Any, Any]) -> Any:
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = grid
    params.block_x, params.block_y, params.block_z = kernel.threads, 1, 1
    params.shared_mem = kernel.shared_bytes
    return params


def _integers(trtp: Any, values: dict[str, Any]) -> Any:
    return trtp.SymIntExprs.from_tuple([trtp.SymInt32(value) for value in values.values()])
