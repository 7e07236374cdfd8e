"""Launches the Triton kernels on torch tensors: the CUDA face of the op.

    out = attend_rows(query, key, value, key_cache, value_cache, cache_indices, gather_indices, scale)

The same code runs in Triton's interpreter on a CPU (TRITON_INTERPRET=1), which is how it is tested without a GPU.
"""

from functools import cache

import torch

from dpad.plugins import tiling, triton_kernel
from dpad.plugins.checks import check_kernel
from dpad.plugins.errors import AttentionError
from dpad.plugins.tiling import Shape, Strides, Tile

_INTERPRETED = ("9.0", 8)  # Triton's interpreter stands for a Hopper GPU of this many SMs


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
    """Shapes as in `dpad.plugins.attention`; indices are taken as checked.

    A cache index past the last slot is treated as padding: nothing outside a tensor is ever
    read. `tile` and `splits` (the most there may be) override the defaults; `output`
    [B, Q, H, D], contiguous, is written instead of a new tensor.
    """
    batch, rows, heads, size = query.shape
    check_kernel(size, str(query.dtype).removeprefix("torch."))
    shape = Shape(batch, rows, cache_indices.shape[1], len(key_cache), heads, key.shape[2])
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if output is None else output
    if not out.is_contiguous() or out.shape != query.shape or out.dtype != query.dtype:
        raise AttentionError(f"output must be contiguous {tuple(query.shape)} in {query.dtype}")
    if out.numel() == 0:
        return out
    capability, processors = _gpu(query.device)
    tile = tile or tiling.tile_for(rows * shape.group, capability)
    per_split = tiling.tiles_per_split(shape, tile, splits or tiling.MAX_SPLITS, processors)
    splits = tiling.split_count(shape, tile, per_split)
    query, key, value, key_cache, value_cache = _aligned(query, key, value, key_cache, value_cache)
    strides = Strides(*_strides(query), *_strides(key), *_strides(key_cache))
    numbers = tiling.attend_integers(shape, strides, tiling.scale_bits(scale), splits, per_split)
    partial, log_weight = out, None
    if splits > 1:
        partial = out.new_empty((splits, *out.shape), dtype=torch.float32)
        log_weight = out.new_empty((splits, batch, rows, heads), dtype=torch.float32)
    head = {"HEAD": size, "HEAD_PADDED": tiling.padded_head(size)}
    triton_kernel.attend[(tiling.row_tiles(shape, tile), shape.kv_heads, batch * splits)](
        query,
        key,
        value,
        key_cache,
        value_cache,
        cache_indices.contiguous(),
        gather_indices.contiguous(),
        *numbers.values(),
        partial,
        log_weight,
        **head,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        PARTIAL=splits > 1,
        CAUSAL=block,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tiling.MAX_REGISTERS,
    )
    if splits > 1:
        total = batch * rows * heads
        triton_kernel.combine[(tiling.ceil_div(total, tiling.COMBINE_ROWS),)](
            partial, log_weight, total, splits, out, **head, BLOCK_M=tiling.COMBINE_ROWS, num_warps=tiling.COMBINE_WARPS
        )
    return out


def _aligned(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The rows where the kernel can read them: copied only if their layout is not token-major."""
    pairs = [(query,), (key, value), (key_cache, value_cache)]
    fits = [all(_fits(t) and t.stride() == pair[0].stride() for t in pair) for pair in pairs]
    return tuple(t if fit else t.contiguous() for pair, fit in zip(pairs, fits) for t in pair)


def _fits(tensor: torch.Tensor) -> bool:
    *outer, heads, last = tensor.stride()
    size = tensor.shape[-1]
    return last == 1 and heads == size and not any(s % size for s in outer) and tensor.data_ptr() % 16 == 0


def _strides(tensor: torch.Tensor) -> list[int]:
    """Of all axes but the last two, in heads."""
    return [stride // tensor.shape[-1] for stride in tensor.stride()[:-2]]


@cache
def _gpu(device: torch.device) -> tuple[str, int]:
    """Compute capability and number of SMs."""
    if device.type != "cuda":
        return _INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.major}.{properties.minor}", int(properties.multi_processor_count)
