"""The Triton kernels of `dpad::sparse_suffix_attention`: one pass over gathered and new rows.

    attend[grid](query, key, value, key_cache, value_cache, cache_indices, gather_indices, ...)
    combine[grid](partial, log_weight, ...)      # only where the keys were split

Online softmax (Milakov and Gimelshein, arXiv 1805.02867) over the named cache rows and then the new rows: nothing is
gathered into memory first. The query heads that share a key/value head are rows of one tile, so every gathered row is
loaded once for all of them. Where few queries meet many keys, the keys are split among programs (flash decoding) and
`combine` adds the parts up.

Symbols: B sequences, Q new rows, K attended cache rows, P pool slots, H query heads, G key/value heads, D head size.
Strides are in heads (D elements), so that every address is known to be aligned; a row's heads are contiguous. Arguments
come in the order that a TensorRT plugin prescribes: inputs, integers, outputs, then constants.
"""

import triton
import triton.language as tl


@triton.jit
def _fold(acc, weight, peak, query, keys, values, seen, scale):
    """Fold one tile of keys [BLOCK_N, D] into the running softmax of [BLOCK_M] rows (base 2).

    `seen` [1 or BLOCK_M, BLOCK_N] are the keys that the rows attend.
    """
    scores = tl.dot(query, tl.trans(keys)) * scale
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    finite = tl.where(higher == float("-inf"), 0.0, higher)  # nothing attended so far
    shares = tl.exp2(scores - finite[:, None])
    fade = tl.exp2(peak - finite)
    acc = tl.dot(shares.to(values.dtype), values, acc * fade[:, None])
    return acc, weight * fade + tl.sum(shares, 1), higher


@triton.jit(
    do_not_specialize=[
        "rows",
        "cached",
        "slots",
        "group",
        "query_batch",
        "query_row",
        "new_batch",
        "new_row",
        "cache_row",
        "scale_bits",
        "splits",
        "tiles_per_split",
    ]
)
def attend(
    query,  # [B, Q, H, D]
    key,  # [B, Q, G, D]
    value,
    key_cache,  # [P, G, D]
    value_cache,
    cache_indices,  # [B, K]
    gather_indices,  # [B, Q]
    rows,  # Q
    cached,  # K
    slots,  # P
    group,  # H / G
    query_batch,  # strides in heads
    query_row,
    new_batch,
    new_row,
    cache_row,
    scale_bits,  # the float32 scale · log2(e), as the integer of its bits
    splits,
    tiles_per_split,
    output,  # [B, Q, H, D]; float32 [splits, B, Q, H, D] if PARTIAL
    log_weight,  # float32 [splits, B, Q, H] if PARTIAL, else None
    HEAD: tl.constexpr,  # D
    HEAD_PADDED: tl.constexpr,  # the next power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTIAL: tl.constexpr,
    CAUSAL: tl.constexpr,  # length of the blocks between which new rows are causal; 0: none
):
    """Attend BLOCK_M query rows of one key/value head; grid (row tiles, G, B · splits)."""
    head = tl.program_id(1)
    heads = tl.num_programs(1) * group
    batch = tl.program_id(2) // splits
    split = tl.program_id(2) % splits
    scale = scale_bits.to(tl.float32, bitcast=True)

    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (token, head of the group)
    token = row // group
    lane = head * group + row % group
    exists = token < rows
    column = tl.arange(0, HEAD_PADDED)
    inside = column < HEAD
    start = (batch * query_batch + token * query_row + lane).to(tl.int64) * HEAD
    tile = tl.load(query + start[:, None] + column[None, :], mask=exists[:, None] & inside[None, :], other=0.0)

    acc = tl.zeros([BLOCK_M, HEAD_PADDED], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    step = tl.arange(0, BLOCK_N)
    cache_tiles = tl.cdiv(cached, BLOCK_N)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, cache_tiles + tl.cdiv(rows, BLOCK_N))

    for index in range(first, tl.minimum(last, cache_tiles)):
        number = index * BLOCK_N + step
        slot = tl.load(cache_indices + batch * cached + number, mask=number < cached, other=-1)
        named = (slot >= 0) & (slot < slots)
        place = (slot * cache_row + head).to(tl.int64) * HEAD
        mask = named[:, None] & inside[None, :]
        keys = tl.load(key_cache + place[:, None] + column[None, :], mask=mask, other=0.0)
        values = tl.load(value_cache + place[:, None] + column[None, :], mask=mask, other=0.0)
        acc, weight, peak = _fold(acc, weight, peak, tile, keys, values, named[None, :], scale)

    if CAUSAL:
        own = tl.load(gather_indices + batch * rows + token, mask=exists, other=-1)
    for index in range(tl.maximum(first, cache_tiles), last):
        number = (index - cache_tiles) * BLOCK_N + step
        position = tl.load(gather_indices + batch * rows + number, mask=number < rows, other=-1)
        named = position >= 0
        place = (batch * new_batch + number * new_row + head).to(tl.int64) * HEAD
        mask = named[:, None] & inside[None, :]
        keys = tl.load(key + place[:, None] + column[None, :], mask=mask, other=0.0)
        values = tl.load(value + place[:, None] + column[None, :], mask=mask, other=0.0)
        seen = named[None, :]
        if CAUSAL:  # a padded row's query attends all that is named
            seen = seen & ((position[None, :] // CAUSAL <= own[:, None] // CAUSAL) | (own[:, None] < 0))
        acc, weight, peak = _fold(acc, weight, peak, tile, keys, values, seen, scale)

    empty = weight == 0.0
    weight = tl.where(empty, 1.0, weight)
    acc = acc / weight[:, None]
    if PARTIAL:
        batches = tl.num_programs(2) // splits
        end = ((split * batches + batch) * rows + token) * heads + lane
        tl.store(log_weight + end, tl.where(empty, float("-inf"), peak + tl.log2(weight)), mask=exists)
        exists = exists & (empty == 0)  # `combine` does not read what weighs nothing
    else:
        end = (batch * rows + token) * heads + lane
    target = output + end.to(tl.int64)[:, None] * HEAD + column[None, :]
    tl.store(target, acc.to(output.dtype.element_ty), mask=exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows", "splits"])
def combine(
    partial,  # float32 [splits, rows, D]
    log_weight,  # float32 [splits, rows]
    rows,  # B · Q · H
    splits,
    output,  # [rows, D]
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add up the parts of BLOCK_M rows, each by its share of the softmax; grid (row tiles,)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = row < rows
    column = tl.arange(0, HEAD_PADDED)
    inside = column < HEAD
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    for split in range(splits):
        part = tl.load(log_weight + split * rows + row, mask=exists, other=float("-inf"))
        peak = tl.maximum(peak, part)
    finite = tl.where(peak == float("-inf"), 0.0, peak)
    acc = tl.zeros([BLOCK_M, HEAD_PADDED], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for split in range(splits):
        part = tl.load(log_weight + split * rows + row, mask=exists, other=float("-inf"))
        share = tl.exp2(part - finite)
        place = (split * rows + row).to(tl.int64) * HEAD
        mask = (share > 0.0)[:, None] & inside[None, :]
        acc += share[:, None] * tl.load(partial + place[:, None] + column[None, :], mask=mask, other=0.0)
        total += share
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    target = output + row.to(tl.int64)[:, None] * HEAD + column[None, :]
    tl.store(target, acc.to(output.dtype.element_ty), mask=exists[:, None] & inside[None, :])
