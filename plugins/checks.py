"""Checks the op's arguments before anything is launched. It handles torch tensors without importing torch.

    check_call(query, key, value, key_cache, value_cache, cache_indices, gather_indices, block)
    check_kernel(head_size, dtype)

The checks run in every layer of every step, so they must be fast: messages are built only when a check fails, and no
tensor's contents are read, which would wait for a GPU. Every message names the value and the limit.
"""

from typing import Any

from dpad.plugins.errors import AttentionError

_MAX_HEAD = 128
_KERNEL_DTYPES = ("float16", "bfloat16")


def check_call(
    query: Any,
    key: Any,
    value: Any,
    key_cache: Any,
    value_cache: Any,
    cache_indices: Any,
    gather_indices: Any,
    block: int = 0,
) -> None:
    """Raise `AttentionError` unless ranks, sizes, dtypes and devices fit together, and `block` is a length or 0."""
    dtype, device, shape = query.dtype, query.device, query.shape
    for name, tensor, rank in (
        ("query", query, 4),
        ("key", key, 4),
        ("value", value, 4),
        ("key_cache", key_cache, 3),
        ("value_cache", value_cache, 3),
        ("cache_indices", cache_indices, 2),
        ("gather_indices", gather_indices, 2),
    ):
        if tensor.ndim != rank:
            raise _wrong(f"{name} has {tensor.ndim} axes, not {rank}")
        if rank > 2 and tensor.dtype != dtype:
            raise _wrong(f"{name} is {tensor.dtype} but query is {dtype}")
        if rank == 2 and str(tensor.dtype) != "torch.int64":
            raise _wrong(f"{name} is {tensor.dtype}, not torch.int64")
        if tensor.device != device:
            raise _wrong(f"{name} is on {tensor.device} but query is on {device}")
    batch, count, heads, size = shape
    kv_heads = key.shape[2]
    if kv_heads == 0 or heads % kv_heads:
        raise _wrong(f"{heads} query heads are not a multiple of {kv_heads} key/value heads")
    if key.shape != (new := (batch, count, kv_heads, size)):
        raise _wrong(f"key is {tuple(key.shape)}; with this query it must be {new}")
    if value.shape != key.shape:
        raise _wrong(f"value is {tuple(value.shape)}, key {tuple(key.shape)}")
    if key_cache.shape[1:] != (kv_heads, size) or not len(key_cache):
        raise _wrong(f"key_cache is {tuple(key_cache.shape)}; it must be one or more slots of {(kv_heads, size)}")
    if value_cache.shape != key_cache.shape:
        raise _wrong(f"value_cache is {tuple(value_cache.shape)}, key_cache {tuple(key_cache.shape)}")
    if gather_indices.shape != shape[:2]:
        raise _wrong(f"gather_indices are {tuple(gather_indices.shape)} for query rows {(batch, count)}")
    if len(cache_indices) != batch:
        raise _wrong(f"cache_indices have batch {len(cache_indices)}, query {batch}")
    if block < 0:
        raise _wrong(f"block {block} must be a length, or 0 for no blocks")


def check_kernel(head_size: int, dtype: str) -> None:
    """Raise `AttentionError` unless the kernel computes heads of this size in this dtype."""
    if dtype not in _KERNEL_DTYPES:
        raise _wrong(f"the kernel computes {' and '.join(_KERNEL_DTYPES)}, not {dtype}")
    if not 16 <= head_size <= _MAX_HEAD or head_size % 16:
        raise _wrong(f"head size {head_size} is not a multiple of 16 from 16 to {_MAX_HEAD}; use native attention")


def _wrong(problem: str) -> AttentionError:
    return AttentionError(f"sparse_suffix_attention: {problem}")
