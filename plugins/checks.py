"""Refuses what the op cannot take, before anything is launched. Works on torch tensors without torch.

    check_shapes(query, key, value, key_cache, value_cache, cache_indices, gather_indices)
    check_kernel(head_size, dtype)

Every message names the value and the limit.
"""

from typing import Any

from dpad.plugins.errors import AttentionError

_MAX_HEAD = 128
_KERNEL_DTYPES = ("float16", "bfloat16")


def check_shapes(
    query: Any, key: Any, value: Any, key_cache: Any, value_cache: Any, cache_indices: Any, gather_indices: Any
) -> None:
    """Raise `AttentionError` unless ranks, sizes, dtypes and devices fit together."""
    rows = {"query": query, "key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache}
    indices = {"cache_indices": cache_indices, "gather_indices": gather_indices}
    for names, rank in ((rows, 4), (indices, 2)):
        for name, tensor in names.items():
            _require(tensor.ndim == rank, f"{name} has {tensor.ndim} axes, not {rank}")
    for name, tensor in rows.items():
        _require(tensor.dtype == query.dtype, f"{name} is {tensor.dtype} but query is {query.dtype}")
    for name, tensor in indices.items():
        _require(str(tensor.dtype) == "torch.int64", f"{name} is {tensor.dtype}, not torch.int64")
    for name, tensor in (rows | indices).items():
        _require(tensor.device == query.device, f"{name} is on {tensor.device} but query is on {query.device}")
        _require(tensor.shape[0] == query.shape[0], f"{name} has batch {tensor.shape[0]}, query {query.shape[0]}")
    _, count, heads, size = query.shape
    kv_heads = key.shape[2]
    _require(kv_heads > 0 and heads % kv_heads == 0, f"{heads} query heads do not share {kv_heads} key/value heads")
    new = (count, kv_heads, size)
    _require(key.shape[1:] == new, f"key is {tuple(key.shape)}; with this query it must end in {new}")
    _require(value.shape == key.shape, f"value is {tuple(value.shape)}, key {tuple(key.shape)}")
    _require(key_cache.shape[2:] == (kv_heads, size), f"key_cache is {tuple(key_cache.shape)}; must end in {new[1:]}")
    _require(value_cache.shape == key_cache.shape, f"value_cache is {tuple(value_cache.shape)}")
    _require(gather_indices.shape[1] == count, f"{gather_indices.shape[1]} gather_indices for {count} query rows")
    _require(
        cache_indices.shape[1] == 0 or key_cache.shape[1] > 0,
        f"{cache_indices.shape[1]} cache_indices but the cache has no slots",
    )


def check_indices(cache_indices: Any, gather_indices: Any, slots: int) -> None:
    """Raise `AttentionError` for an index below -1, or a cache index at `slots` or over.

    Reads the tensors, so on a GPU it waits for them.
    """
    for name, tensor in (("cache_indices", cache_indices), ("gather_indices", gather_indices)):
        if tensor.numel() == 0:
            continue
        low, high = (int(bound) for bound in tensor.aminmax())
        _require(low >= -1, f"{name} holds {low}; the lowest is -1, which pads")
        _require(name != "cache_indices" or high < slots, f"{name} holds {high} but the cache has {slots} slots")


def check_block(block: int = 0) -> None:
    """Raise `AttentionError` unless `block` is a length, or 0."""
    _require(block >= 0, f"block {block} is below 0, which stands for no blocks")


def check_kernel(head_size: int, dtype: str) -> None:
    """Raise `AttentionError` unless the kernel computes heads of this size in this dtype."""
    _require(dtype in _KERNEL_DTYPES, f"the kernel computes {' and '.join(_KERNEL_DTYPES)}, not {dtype}")
    _require(
        16 <= head_size <= _MAX_HEAD and head_size % 16 == 0,
        f"head size {head_size} is not a multiple of 16 from 16 to {_MAX_HEAD}; use native attention",
    )


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AttentionError(f"sparse_suffix_attention: {problem}")
