"""`dpad::sparse_suffix_attention`, defined once in plain torch.

    out = torch.ops.dpad.sparse_suffix_attention(
        query, key, value, key_cache, value_cache, cache_indices, gather_indices, scale, block=0)

Every query row attends, in both directions, to the cache rows named by `cache_indices` and to the new rows named by
`gather_indices` (DPad, arXiv 2508.14148: the prefix, the block and the suffix tokens that survived the dropout). Cache
rows lie in a pool that all sequences of the batch share. With a `block` length, attention among the new rows is causal
between blocks and full inside one (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328), so that one step can
compute a whole prompt. This file is the definition; every other implementation of the op is tested against it.

Symbols: B sequences, Q new rows, K attended cache rows, P pool slots, H query heads, G key/value heads (H is a multiple
of G), D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from dpad.plugins import checks
from dpad.plugins.errors import AttentionError

# The function that a model calls in every layer: (layer, query, key, value) -> attended [B, Q, H, D].
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@torch.library.custom_op("dpad::sparse_suffix_attention", mutates_args=())
def sparse_suffix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    cache_indices: torch.Tensor,
    gather_indices: torch.Tensor,
    scale: float,
    block: int = 0,
) -> torch.Tensor:
    """Attention of the new rows over the named cache rows and the new rows themselves.

    Args:
        query: [B, Q, H, D], after rotation.
        key, value: [B, Q, G, D], the new rows; the key after rotation.
        key_cache, value_cache: [P, G, D], the pool; P is at least 1.
        cache_indices: int64 [B, K], pool slots to attend; -1 pads; K may be 0.
        gather_indices: int64 [B, Q], canvas positions of the new rows; a row whose
            position is -1 is padding, and no query attends it.
        scale: factor on the scores before the softmax.
        block: number of positions per block. A new row at position p attends new rows up to the end of p's block; with
            0 it attends all of them. Every query attends all named cache rows, and a padded row's query attends all
            named rows.

    Padding has no weight, but its rows may be read: slot 0 of the pool and the padded new rows must be finite.
    No other unnamed slot is ever read. On a GPU the caller must have checked the indices: they are not copied back to
    the host, and the kernel treats an index past the pool as padding.

    Returns:
        [B, Q, H, D] in the dtype of `query`. A query with nothing to attend gives 0.

    Raises:
        AttentionError: shapes or dtypes do not fit (checked before anything runs), or, on a CPU, a slot is past the
            pool.
    """
    inputs = (query, key, value, key_cache, value_cache, cache_indices, gather_indices)
    checks.check_call(*inputs, block)
    try:
        return definition(*inputs, scale, block)
    except IndexError:  # raised by the lookup: a check before it would cost time in every layer
        raise AttentionError(
            f"sparse_suffix_attention: cache_indices hold {cache_indices.max()} but the pool has {len(key_cache)} slots"
        ) from None


def definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    cache_indices: torch.Tensor,
    gather_indices: torch.Tensor,
    scale: float,
    block: int = 0,
) -> torch.Tensor:
    """Compute the op without checks; arguments and result as in `sparse_suffix_attention`."""
    slots, cached = cache_indices.clamp(min=0), (*cache_indices.shape, *key.shape[2:])  # [B, K, G, D]
    cached_keys = F.embedding(slots, key_cache.flatten(1)).view(cached)
    cached_values = F.embedding(slots, value_cache.flatten(1)).view(cached)
    keys = torch.cat([cached_keys, key], dim=1)  # [B, K + Q, G, D]
    values = torch.cat([cached_values, value], dim=1)
    attended = torch.cat([cache_indices, gather_indices], dim=1) >= 0  # [B, K + Q]
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=(attended[:, None, :] & _seen(cache_indices, gather_indices, block))[:, None],
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    anything = attended.any(dim=1)[:, None, None, None]
    return torch.where(anything, out, torch.zeros_like(out)).transpose(1, 2).contiguous()


def _seen(cache_indices: torch.Tensor, gather_indices: torch.Tensor, block: int) -> torch.Tensor:
    """Mask of the cached and new rows that each query's block may see: [B, Q, K + Q], or [1, 1, 1] if all."""
    if block == 0:
        return gather_indices.new_ones((1, 1, 1), dtype=torch.bool)
    blocks, padded = gather_indices // block, (gather_indices < 0)[:, :, None]
    new = (blocks[:, :, None] >= blocks[:, None, :]) | padded
    cached = new.new_ones((*gather_indices.shape, cache_indices.shape[1]))
    return torch.cat([cached, new], dim=2)


@sparse_suffix_attention.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> torch.Tensor:
    """Run the Triton kernel in 16 bits; in float32, which serves comparisons, run the definition."""
    query, block = arguments[0], arguments[8:]
    checks.check_call(*arguments[:7], *block)
    if query.dtype == torch.float32:
        return definition(*arguments)
    from dpad.plugins.launch import attend_rows  # imports Triton, which a CPU does not need

    return attend_rows(*arguments)


@sparse_suffix_attention.register_fake
def _fake(query: torch.Tensor, *others: object) -> torch.Tensor:
    """Give shape and dtype only, for fake and meta tensors."""
    return query.new_empty(query.shape)
