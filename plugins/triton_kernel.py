"""The Triton kernels of `dpad::sparse_suffix_attention`: one pass over gathered and new rows.

    attend[grid](query, key, value, key_cache, value_cache, cache_indices, gather_indices, ...)
    combine[grid](partial, log_weight, ...)      # only if the keys were split

The kernel computes an online softmax (Milakov and Gimelshein, arXiv 1805.02867) over the named cache rows and then the
new rows, without gathering them in memory first. Query heads that share a key/value head are rows of one tile, so every
gathered row is loaded once for all of them. With few queries and many keys, the keys are split among programs (flash
decoding), and `combine` adds up the parts.

Symbols: B sequences, Q new rows, K attended cache rows, P pool slots, H query heads, G key/value heads, D head size.
Strides are in heads (D elements), so that the compiler knows every address to be aligned; a row's heads are contiguous.
Arguments have the order that a TensorRT plugin requires: inputs, integers, outputs, then constants.
"""

import triton
import triton.language as tl

_ANY: tl.constexpr = tl.constexpr(0x7FFFFFFF)  # above every position and slot


@triton.jit
def _fold(acc, weight, peak, query, keys, values, seen, scale):
    """Fold one tile of keys [BLOCK_N, D] into the running softmax of [BLOCK_M] rows (base 2).

    `seen` [1 or BLOCK_M, BLOCK_N] marks the keys that the rows attend; `scale` is above 0.
    """
    scores = tl.where(seen, tl.dot(query, tl.trans(keys)), float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1) * scale)
    finite = tl.where(higher == float("-inf"), 0.0, higher)  # nothing attended so far
    shares = tl.exp2(scores * scale - finite[:, None])
    fade = tl.exp2(peak - finite)
    acc = tl.dot(shares.to(values.dtype), values, acc * fade[:, None])
    return acc, weight * fade + tl.sum(shares, 1), higher


@triton.jit
def _row(BLOCK_M: tl.constexpr, group, origin):
    """Token, and head within its group, of each row of this program's tile.

    The division by `group` is done by a multiplication, which is exact while Q · group · group is below 2^32.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M) + origin
    token = tl.umulhi((row + 1).to(tl.uint32), 0xFFFFFFFF // group.to(tl.uint32)).to(tl.int32)
    return token, row - token * group


@triton.jit
def _names(index, cache_tiles, cache_indices, gather_indices, cached, rows, BLOCK_N: tl.constexpr):
    """The indices of a tile of keys: slots of the pool or, from tile `cache_tiles` on, positions; -1 past the end.

    Only the lower half of a 64-bit index is read: it can hold every slot, every position and -1.
    """
    fresh = index >= cache_tiles
    number = (index - tl.where(fresh, cache_tiles, 0)) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = number < tl.where(fresh, rows, cached)
    words: tl.constexpr = cache_indices.dtype.element_ty.primitive_bitwidth // 32
    indices = tl.where(fresh, gather_indices, cache_indices).to(tl.pointer_type(tl.int32))
    return tl.load(indices + number * words, mask=exists, other=-1)


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
        "block",
        "splits",
        "tiles_per_split",
    ],
    # a thread reads single indices, so alignment gains nothing, and one variant suffices
    do_not_specialize_on_alignment=["cache_indices", "gather_indices"],
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
    block,  # length of the blocks between which new rows are causal, if CAUSAL
    splits,
    tiles_per_split,
    output,  # [B, Q, H, D]; float32 [splits, B, Q, H, D] if PARTIAL
    log_weight,  # float32 [splits, B, Q, H] if PARTIAL, else None
    HEAD: tl.constexpr,  # D
    HEAD_PADDED: tl.constexpr,  # the next power of two
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTIAL: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Attend BLOCK_M query rows of one key/value head; grid (row tiles, G, B · splits).

    A tile of keys belongs to the cache or to the new rows, never to both. The indices of a tile are loaded one turn of
    the loop before they are used, so that no turn waits for them.
    """
    head = tl.program_id(1)
    heads = tl.num_programs(1) * group
    batch = tl.program_id(2) // splits
    split = tl.program_id(2) % splits
    scale = scale_bits.to(tl.float32, bitcast=True)
    cache_indices += batch * cached
    gather_indices += batch * rows
    cache_tiles = tl.cdiv(cached, BLOCK_N)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, cache_tiles + tl.cdiv(rows, BLOCK_N))
    # The loop has at least one turn: an idle split takes a tile without keys. If the loop could be empty, the zeros of
    # `acc` would merge with asynchronous products after the loop, and ptxas would wait for each product (note C7515).
    last = tl.maximum(last, first + 1)
    tl.assume(last > first)
    name = _names(first, cache_tiles, cache_indices, gather_indices, cached, rows, BLOCK_N)

    token, lane = _row(BLOCK_M, group, 0)
    exists = token < rows
    column = tl.arange(0, HEAD_PADDED)
    inside = column < HEAD
    start = (batch * query_batch + token * query_row + head * group + lane).to(tl.int64) * HEAD
    tile = tl.load(query + start[:, None] + column[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
    if CAUSAL:  # a padded row's query attends all named rows
        words: tl.constexpr = gather_indices.dtype.element_ty.primitive_bitwidth // 32
        own = tl.load(gather_indices.to(tl.pointer_type(tl.int32)) + token * words, mask=exists, other=-1)
        edge = tl.where(own < 0, _ANY, (own // block + 1) * block)  # the first position that the row does not attend

    acc = tl.zeros([BLOCK_M, HEAD_PADDED], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    for index in range(first, last):
        fresh = index >= cache_tiles
        number = (index - cache_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
        limit = tl.where(fresh, _ANY, slots)
        named = name.to(tl.uint32, bitcast=True) < limit.to(tl.uint32)  # unsigned, -1 is the largest number
        place = tl.where(fresh, number, name) * tl.where(fresh, new_row, cache_row)
        place += head + tl.where(fresh, batch * new_batch, 0)
        seen = named[None, :]
        if CAUSAL:
            seen = tl.where(named, tl.where(fresh, name, 0), _ANY)[None, :] < edge[:, None]
        name = _names(index + 1, cache_tiles, cache_indices, gather_indices, cached, rows, BLOCK_N)
        # Broadcasting moves one number per row through shared memory, instead of two addresses and a mask.
        place = tl.broadcast_to(tl.where(named, place, -1)[:, None], (BLOCK_N, HEAD_PADDED))
        offset = place.to(tl.int64) * HEAD + column[None, :]
        mask = place >= 0
        if HEAD < HEAD_PADDED:
            mask = mask & inside[None, :]
        keys = tl.load(tl.where(fresh, key, key_cache) + offset, mask=mask, other=0.0)
        values = tl.load(tl.where(fresh, value, value_cache) + offset, mask=mask, other=0.0)
        acc, weight, peak = _fold(acc, weight, peak, tile, keys, values, seen, scale)

    empty = weight == 0.0
    weight = tl.where(empty, 1.0, weight)
    acc = acc * (1.0 / weight)[:, None]
    # The origin is 0, but the compiler does not know it. So it computes the rows again instead of keeping them in
    # registers.
    token, lane = _row(BLOCK_M, group, tl.minimum(rows, 0))
    exists = token < rows
    end = (batch * rows + token) * heads + head * group + lane
    if PARTIAL:
        end += split * (tl.num_programs(2) // splits) * rows * heads
        tl.store(log_weight + end, tl.where(empty, float("-inf"), peak + tl.log2(weight)), mask=exists)
        exists = exists & (empty == 0)  # `combine` does not read parts without weight
    target = output + end.to(tl.int64)[:, None] * HEAD + column[None, :]
    tl.store(target, acc.to(output.dtype.element_ty), mask=exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows", "splits"])
def combine(
    partial,  # float32 [splits, rows, D]
    log_weight,  # float32 [splits, rows]
    like,  # [rows, D]; never read: a plugin needs an input from which to take its output's size
    rows,  # B · Q · H
    splits,
    output,  # [rows, D]
    HEAD: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,  # a power of two, not below `splits`
):
    """Add up the parts of BLOCK_M rows, each weighted by its share of the softmax; grid (row tiles,).

    The loops are unrolled so that the weights of all splits are loaded together; a loop would wait for each in turn.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = row < rows
    column = tl.arange(0, HEAD_PADDED)
    inside = column < HEAD
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        part = tl.load(log_weight + split * rows + row, mask=exists & (split < splits), other=float("-inf"))
        peak = tl.maximum(peak, part)
    finite = tl.where(peak == float("-inf"), 0.0, peak)
    acc = tl.zeros([BLOCK_M, HEAD_PADDED], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        part = tl.load(log_weight + split * rows + row, mask=exists & (split < splits), other=float("-inf"))
        share = tl.exp2(part - finite)
        place = (split * rows + row).to(tl.int64) * HEAD
        mask = (share > 0.0)[:, None] & inside[None, :]
        acc += share[:, None] * tl.load(partial + place[:, None] + column[None, :], mask=mask, other=0.0)
        total += share
    acc = acc * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
    target = output + row.to(tl.int64)[:, None] * HEAD + column[None, :]
    tl.store(target, acc.to(output.dtype.element_ty), mask=exists[:, None] & inside[None, :])
