"""`dpad::sparse_suffix_attention`, defined once in plain torch.

    out = torch.ops.dpad.sparse_suffix_attention(
        query, key, value, key_cache, value_cache, cache_indices, gather_indices, scale, block=0)

Every query row attends, in both directions, to the union of the cache rows named by
`cache_indices` and the new rows named by `gather_indices` (DPad, arXiv 2508.14148: the
prefix, the block and the suffix tokens that survived the dropout). Slots are absolute
canvas positions; nothing here renumbers them. With a `block` length, the new rows are causal between blocks and full
inside one (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328): that is how a whole prompt is computed in one
step. This file is the definition; every other
face of the op is tested against it.

Symbols: B batch, Q new rows, K attended cache rows, T cache slots, H query heads,
G key/value heads (H is a multiple of G), D head size.
"""

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F

from dpad.plugins import checks

# What a model calls in every layer: (layer, query, key, value) -> attended [B, Q, H, D].
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def gather_rows(source: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows of `source` [B, T, width] at `indices` [B, K] -> [B, K, width]; -1 reads row 0."""
    batch, rows, width = source.shape
    first = torch.arange(batch, device=source.device)[:, None] * rows
    return F.embedding(indices.clamp(min=0) + first, source.reshape(batch * rows, width))


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
        key_cache, value_cache: [B, T, G, D], token-major.
        cache_indices: int64 [B, K], cache slots to attend; -1 pads; K may be 0, and must
            be where T is 0.
        gather_indices: int64 [B, Q], canvas positions of the new rows; a row whose
            position is -1 is padding and is attended by nobody.
        scale: factor on the scores before the softmax.
        block: a new row at position p attends new rows up to the end of p's block, of this many positions; 0: all.
            Cache rows are attended by every query, and a padded row's query attends all that is named.

    What padding stands for weighs nothing but may be read: slot 0 of the cache and the
    padded new rows must be finite. No other slot that is not named is ever read.

    Returns:
        [B, Q, H, D] in the dtype of `query`. A query with nothing to attend gives 0.

    Raises:
        AttentionError: shapes, dtypes or indices that do not fit, before anything runs.
    """
    inputs = (query, key, value, key_cache, value_cache, cache_indices, gather_indices)
    checks.check_shapes(*inputs)
    checks.check_block(block)
    checks.check_indices(cache_indices, gather_indices, key_cache.shape[1])
    return definition(*inputs, scale, block)


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
    """What the op means, unchecked; arguments and result as in `sparse_suffix_attention`."""
    cached = (*cache_indices.shape, *key.shape[2:])  # [B, K, G, D]
    cached_keys = gather_rows(key_cache.flatten(2), cache_indices).view(cached)
    cached_values = gather_rows(value_cache.flatten(2), cache_indices).view(cached)
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
    """Which of the cached and new rows each query may see by their blocks: [B, Q, K + Q], or [1, 1, 1] if all."""
    if block == 0:
        return gather_indices.new_ones((1, 1, 1), dtype=torch.bool)
    blocks, padded = gather_indices // block, (gather_indices < 0)[:, :, None]
    new = (blocks[:, :, None] >= blocks[:, None, :]) | padded
    cached = new.new_ones((*gather_indices.shape, cache_indices.shape[1]))
    return torch.cat([cached, new], dim=2)


@sparse_suffix_attention.register_kernel("cuda")
def _on_cuda(*arguments: Any) -> torch.Tensor:
    """The Triton kernel in 16 bit; the definition in float32, which is for comparison."""
    query, _, _, key_cache, _, cache_indices, gather_indices, _, *block = arguments
    slots = key_cache.shape[1]
    checks.check_shapes(*arguments[:7])
    checks.check_block(*block)
    if query.dtype == torch.float32:
        checks.check_indices(cache_indices, gather_indices, slots)
        return definition(*arguments)
    checks.check_kernel(query.shape[3], str(query.dtype).removeprefix("torch."))
    if not torch.cuda.is_current_stream_capturing():  # reading them would end the capture
        _check_once(cache_indices, gather_indices, slots)
    from dpad.plugins.launch import attend_rows  # imports Triton, which a CPU does not need

    return attend_rows(*arguments)


def _check_once(cache_indices: torch.Tensor, gather_indices: torch.Tensor, slots: int) -> None:
    """Check indices on a GPU, which waits for them, in the first layer only: all layers share them."""
    seen = getattr(cache_indices, "_dpad_checked", None)
    if seen is None or seen[0]() is not gather_indices or seen[1] != slots:
        checks.check_indices(cache_indices, gather_indices, slots)
        cache_indices._dpad_checked = (ref(gather_indices), slots)  # type: ignore[attr-defined]


@sparse_suffix_attention.register_fake
def _fake(query: torch.Tensor, *others: object) -> torch.Tensor:
    """Shape and dtype only; serves fake and meta tensors alike."""
    return query.new_empty(query.shape)
