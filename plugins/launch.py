"""Launches the Triton kernels on torch tensors: the CUDA implementation of the op.

    out = attend_rows(query, key, value, key_cache, value_cache, cache_indices, gather_indices, scale)

The same code runs in Triton's interpreter on a CPU (TRITON_INTERPRET=1); tests without a GPU use it.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch

from dpad.plugins import tiling, triton_kernel
from dpad.plugins.checks import check_kernel
from dpad.plugins.errors import AttentionError
from dpad.plugins.tiling import Shape, Strides, Tile

_INTERPRETED = ("9.0", 8)
_SHAPES = 1024  # most shapes whose launches are cached


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    cache_indices: torch.Tensor,
    gather_indices: torch.Tensor,
    scale: float,
    block: int = 0,
    *,
    tile: Tile | None = None,
    splits: int | None = None,
    output: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the op's kernels; arguments and result as in `dpad.plugins.attention`. Indices must have been checked.

    A cache index past the last slot is treated as padding: nothing outside a tensor is ever
    read. `tile` and `splits` (over the keys) override the choice for the shape; `output`
    [B, Q, H, D], contiguous, is written instead of a new tensor.

    Raises:
        AttentionError: the kernel cannot compute the dtype, head size or scale, or `output` does not fit.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if output is None else output
    if not out.is_contiguous() or out.shape != query.shape or out.dtype != query.dtype:
        raise AttentionError(f"output must be contiguous {tuple(query.shape)} in {query.dtype}")
    if out.numel() == 0:
        return out
    (query,) = _token_major(query)
    key, value = _token_major(key, value)
    key_cache, value_cache = _token_major(key_cache, value_cache)
    strides = (query.stride(), key.stride(), key_cache.stride())
    sizes = (query.shape, key.shape[2], cache_indices.shape[1], len(key_cache))
    ready = _launch(query.device, query.dtype, sizes, strides, scale, block, tile, splits)
    partial, log_weight = out, None
    if ready.splits > 1:
        partial = out.new_empty((ready.splits, *query.shape), dtype=torch.float32)
        log_weight = out.new_empty((ready.splits, *query.shape[:3]), dtype=torch.float32)
    inputs = (query, key, value, key_cache, value_cache, cache_indices.contiguous(), gather_indices.contiguous())
    triton_kernel.attend[ready.grid](*inputs, *ready.integers, partial, log_weight, **ready.constants)
    if log_weight is not None:
        combine_rows(partial, log_weight, out)
    return out


def combine_rows(partial: torch.Tensor, log_weight: torch.Tensor, output: torch.Tensor) -> None:
    """Add up parts [splits, B, Q, H, D], weighted by `log_weight` [splits, B, Q, H], into `output` [B, Q, H, D]."""
    splits, rows = len(partial), log_weight.numel() // len(partial)
    grid = (tiling.ceil_div(rows, tiling.COMBINE_ROWS),)
    constants = tiling.combine_constants(output.shape[3], splits)
    numbers = rows, splits
    triton_kernel.combine[grid](
        partial, log_weight, output, *numbers, output, **constants, num_warps=tiling.COMBINE_WARPS
    )


@dataclass(frozen=True)
class _Launch:
    """The arguments of `attend` other than tensors, and the number of splits over keys."""

    grid: tuple[int, int, int]
    integers: tuple[int, ...]
    constants: dict[str, Any]
    splits: int


@lru_cache(maxsize=_SHAPES)
def _launch(
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[torch.Size, int, int, int],
    strides: tuple[tuple[int, ...], ...],
    scale: float,
    block: int,
    tile: Tile | None,
    splits: int | None,
) -> _Launch:
    """Compute the launch, once for each shape; `strides` are those of query, new rows and pool."""
    (batch, rows, heads, size), kv_heads, cached, slots = sizes
    check_kernel(size, str(dtype).removeprefix("torch."))
    shape = Shape(batch, rows, cached, slots, heads, kv_heads)
    capability, processors = gpu(device)
    tile = tile or tiling.tile_for(rows * shape.group, capability, block > 0)
    count, each = tiling.split(shape, tile, processors, splits)
    distances = Strides(*(stride // size for strided in strides for stride in strided[:-2]))
    bits = tiling.scale_bits(scale)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tiling.MAX_REGISTERS}
    return _Launch(
        grid=(tiling.row_tiles(shape, tile), kv_heads, batch * count),
        integers=tuple(tiling.attend_integers(shape, distances, bits, block, count, each).values()),
        constants=tiling.attend_constants(size, tile, count > 1, block > 0) | options,
        splits=count,
    )


def _token_major(*alike: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in a layout that the kernel can read, all with the strides of the first; copied only if needed."""
    strides = alike[0].stride()
    if _fits(strides, alike[0].shape[-1]) and all(tensor.stride() == strides for tensor in alike[1:]):
        return alike
    return tuple(tensor.contiguous() for tensor in alike)


@lru_cache(maxsize=_SHAPES)
def _fits(strides: tuple[int, ...], size: int) -> bool:
    *outer, heads, last = strides
    return last == 1 and heads == size and not any(stride % size for stride in outer)


@cache
def gpu(device: torch.device) -> tuple[str, int]:
    """Compute capability and number of SMs; for a CPU, which interprets kernels, those of a small Hopper GPU."""
    if device.type != "cuda":
        return _INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.major}.{properties.minor}", int(properties.multi_processor_count)
