"""Compares the Triton kernel with the definition, in Triton's interpreter or on a GPU if there is one.

Outputs are NaN before the call, so that an element that is not written is noticed. Pool slots that no index names are
NaN, so that reading one is noticed.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreter import DEVICE, GPU

from dpad.plugins import tiling
from dpad.plugins.attention import definition, sparse_suffix_attention
from dpad.plugins.errors import AttentionError
from dpad.plugins.launch import attend_rows
from dpad.plugins.tiling import Shape, Tile

Inputs = list[torch.Tensor]
SMALL = Tile(32, 16, warps=2)
TILES = {tile for capability in ("8.6", "9.0") for tile in tiling.tactics(capability).values()}
LIMIT = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # relative RMS error; bfloat16 is 8 times coarser


def random_inputs(
    seed: int, dtype: torch.dtype, batch: int, rows: int, cached: int, heads: int, group: int, size: int
) -> Inputs:
    """Query, key, value, caches and indices, with padding in both indices; pool slots without an index are NaN."""
    rng = torch.Generator().manual_seed(seed)
    slots = cached + 3
    shapes = [(batch, rows, heads * group, size)] + [(batch, rows, heads, size)] * 2 + [(slots, heads, size)] * 2
    tensors = [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]
    cache_indices = torch.full((batch, cached), -1)
    gather_indices = torch.full((batch, rows), -1)
    for b in range(batch):
        named = int(torch.randint(0, cached + 1, (), generator=rng))
        places = torch.randperm(cached, generator=rng)[:named]
        cache_indices[b, places] = torch.randperm(slots, generator=rng)[:named]
        real = int(torch.randint(1, rows + 1, (), generator=rng))
        gather_indices[b, :real] = torch.arange(real) + 1000
    unnamed = [slot for slot in range(slots) if slot not in cache_indices]
    for cache in tensors[3:]:
        cache[unnamed] = float("nan")
    return [tensor.to(DEVICE) for tensor in (*tensors, cache_indices, gather_indices)]


def expected(inputs: Inputs, scale: float, block: int = 0) -> torch.Tensor:
    """The definition's result in float32; padding may read slot 0, which must be finite."""
    wide = [tensor.float().nan_to_num(0.0) if tensor.is_floating_point() else tensor for tensor in inputs]
    return definition(*wide, scale, block)


def run(inputs: Inputs, scale: float, block: int = 0, **options: object) -> torch.Tensor:
    out = inputs[0].new_full(inputs[0].shape, float("nan"))
    return attend_rows(*inputs, scale, block, output=out, **options)  # type: ignore[arg-type]


def assert_close(out: torch.Tensor, inputs: Inputs, scale: float, block: int = 0) -> None:
    want = expected(inputs, scale, block)
    error = (out.float() - want).square().mean().sqrt() / want.square().mean().sqrt().clamp(min=1e-3)
    assert error <= LIMIT[out.dtype], f"relative RMS error {error:.2e}"  # fails for NaN too


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(LIMIT)),
    batch=st.integers(1, 3),
    rows=st.integers(1, 40),
    cached=st.integers(0, 90),
    heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 7]),
    size=st.sampled_from(tiling.HEAD_SIZES),
    splits=st.sampled_from([1, 2, 5]),
    block=st.sampled_from([0, 0, 4, 7]),
)
def test_agrees_with_the_definition(
    seed: int,
    dtype: torch.dtype,
    batch: int,
    rows: int,
    cached: int,
    heads: int,
    group: int,
    size: int,
    splits: int,
    block: int,
) -> None:
    """Fails for wrong gathering, masking, blocks, grouping, splitting, scaling or an unwritten element."""
    inputs = random_inputs(seed, dtype, batch, rows, cached, heads, group, size)
    assert_close(run(inputs, size**-0.5, block, tile=SMALL, splits=splits), inputs, size**-0.5, block)


@pytest.mark.parametrize("tile", sorted(TILES, key=str))
@pytest.mark.parametrize("size", tiling.HEAD_SIZES)
def test_every_tile_that_is_compiled(tile: Tile, size: int) -> None:
    """Fails if a tile of the table gives another result, with the splits that a GPU would use."""
    inputs = random_inputs(5, torch.float16, 2, 37, 500, 2, 4, size)
    assert_close(run(inputs, 0.1, tile=tile), inputs, 0.1)


@pytest.mark.parametrize("splits", [1, 3])
def test_a_row_with_nothing_to_attend_gives_zero(splits: int) -> None:
    """Fails if an empty softmax gives NaN, in one launch or in the combination of parts."""
    inputs = random_inputs(6, torch.float16, 3, 9, 200, 1, 1, 64)
    inputs[5][1] = inputs[6][1] = -1
    out = run(inputs, 0.2, tile=SMALL, splits=splits)
    assert (out[1] == 0).all()
    assert_close(out, inputs, 0.2)


def test_splits_that_have_no_keys_weigh_nothing() -> None:
    """Fails if splits with only padding change the result; all keys are in the first split."""
    inputs = random_inputs(7, torch.float16, 1, 4, 400, 1, 1, 64)
    inputs[5][:, 20:] = -1
    inputs[6][:] = -1
    assert_close(run(inputs, 0.2, tile=SMALL, splits=6), inputs, 0.2)


def test_an_index_past_the_pool_reads_nothing() -> None:
    """Fails if an index beyond the pool reads outside the tensor; it must act as padding."""
    inputs = random_inputs(8, torch.float16, 1, 4, 30, 1, 1, 64)
    wild = [*inputs[:5], inputs[5].clone(), inputs[6]]
    inputs[5][0, :3] = -1
    wild[5][0, :3] = torch.tensor([33, 1 << 20, (1 << 31) - 1])
    torch.testing.assert_close(run(wild, 0.2, tile=SMALL), run(inputs, 0.2, tile=SMALL))


def test_large_scores_do_not_overflow() -> None:
    """Fails if the running maximum is not subtracted before the exponential."""
    inputs = random_inputs(9, torch.float16, 1, 8, 60, 1, 2, 64)
    inputs[0] *= 100
    out = run(inputs, 1.0, tile=SMALL, splits=2)
    assert out.isfinite().all()


def test_strided_token_major_rows_are_read_in_place() -> None:
    """Fails if strides are ignored: query, key and value as slices of one projection."""
    batch, rows, heads, size = 2, 12, 2, 64
    fused = torch.randn(batch, rows, 3 * heads, size, dtype=torch.float16, device=DEVICE)
    query, key, value = fused.split(heads, dim=2)
    caches = torch.randn(50, 2 * heads, size, dtype=torch.float16, device=DEVICE).split(heads, dim=1)
    assert not query.is_contiguous()
    indices = [torch.arange(40, device=DEVICE).repeat(batch, 1), torch.arange(rows, device=DEVICE).repeat(batch, 1)]
    inputs = [query, key, value, *caches, *indices]
    out = torch.full((batch, rows, heads, size), float("nan"), dtype=torch.float16, device=DEVICE)
    assert_close(attend_rows(*inputs, 0.125, tile=SMALL, output=out), inputs, 0.125)


def test_other_layouts_are_copied() -> None:
    """Fails if a head-major tensor is read as token-major."""
    inputs = random_inputs(10, torch.float16, 2, 6, 20, 2, 1, 64)
    turned = [t.transpose(-3, -2).contiguous().transpose(-3, -2) for t in inputs[:5]]
    torch.testing.assert_close(run([*turned, *inputs[5:]], 0.2, tile=SMALL), run(inputs, 0.2, tile=SMALL))


def test_no_rows_is_no_launch() -> None:
    """Fails if an empty query launches an empty grid."""
    inputs = random_inputs(11, torch.float16, 1, 4, 5, 1, 1, 64)
    empty = [t[:, :0] for t in inputs[:3]] + inputs[3:6] + [inputs[6][:, :0]]
    assert attend_rows(*empty, 0.2).shape == (1, 0, 1, 64)


@given(
    batch=st.integers(1, 8),
    rows=st.integers(1, 4096),
    cached=st.integers(0, 16384),
    kv_heads=st.integers(1, 32),
    group=st.integers(1, 8),
    splits=st.sampled_from([None, 1, 2, 5, tiling.MAX_SPLITS]),
    processors=st.sampled_from([1, 8, 108, 132]),
)
def test_splits_cover_every_key(
    batch: int, rows: int, cached: int, kv_heads: int, group: int, splits: int | None, processors: int
) -> None:
    """Fails if tiles of keys are left out, splits are empty, or the programs need more than one round of the GPU."""
    shape = Shape(batch, rows, cached, cached, kv_heads * group, kv_heads)
    tile = tiling.tile_for(rows * group, "9.0")
    count, each = tiling.split(shape, tile, processors, splits)
    keys = -(-cached // tile.block_n) + -(-rows // tile.block_n)
    assert count <= (splits or tiling.MAX_SPLITS)
    assert (count - 1) * each < keys <= count * each
    programs = tiling.row_tiles(shape, tile) * kv_heads * batch
    assert splits or count == 1 or programs * count <= processors * tile.resident


def test_few_queries_against_many_keys_fill_the_gpu() -> None:
    """Fails if one block with a long prefix uses a small part of a GPU, or more programs than it can run at once."""
    shape = Shape(1, 32, 8192, 8192, 32, 32)
    tile = tiling.tile_for(32, "9.0")
    count, _ = tiling.split(shape, tile, 132)
    assert 120 <= tiling.row_tiles(shape, tile) * 32 * count <= 132


@pytest.mark.parametrize(("cached", "splits"), [(60, 1), (128, 1), (256, 3), (640, 6)])
def test_keys_are_split_where_that_pays(cached: int, splits: int) -> None:
    """Fails if keys are split although combining the parts takes longer than the split saves."""
    assert tiling.split(Shape(1, 32, cached, 1, 8, 4), tiling.tiles("9.0")[0], 132)[0] == splits


BAD = {
    "dtype": (1, lambda t: t.float(), "key is torch.float32 but query is torch.float16"),
    "axes": (0, lambda t: t[0], "query has 3 axes, not 4"),
    "rows": (2, lambda t: t[:, :-1], "value is"),
    "heads": (0, lambda t: torch.cat([t, t[:, :, :1]], 2), "3 query heads are not a multiple of 2"),
    "cache heads": (3, lambda t: t[:, :1], "key_cache is"),
    "batch": (5, lambda t: t[:1], "cache_indices have batch 1, query 2"),
    "int32 indices": (6, lambda t: t.int(), "gather_indices is torch.int32, not torch.int64"),
    "index count": (6, lambda t: t[:, :-1], r"gather_indices are \(2, 3\) for query rows \(2, 4\)"),
    "no slots": (3, lambda t: t[:0], "key_cache is .*one or more slots"),
    "a cache a sequence": (4, lambda t: t[None], "value_cache has 4 axes, not 3"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_anything_runs(what: str) -> None:
    """Fails if invalid input reaches the device, or the error does not name the value and the limit."""
    inputs = random_inputs(12, torch.float16, 2, 4, 20, 2, 1, 64)
    inputs[5][:, 0] = -1
    place, spoil, message = BAD[what]
    inputs[place] = spoil(inputs[place])
    with pytest.raises(AttentionError, match=message):
        sparse_suffix_attention(*inputs, 0.2)


def test_a_slot_past_the_pool_is_refused_on_a_cpu() -> None:
    """Fails if the error is that of the lookup, which does not name the value."""
    inputs = [tensor.cpu() for tensor in random_inputs(12, torch.float32, 2, 4, 20, 2, 1, 64)]
    inputs[5][1, 3] = 23
    with pytest.raises(AttentionError, match="cache_indices hold 23 but the pool has 23 slots"):
        sparse_suffix_attention(*inputs, 0.2)


@pytest.mark.parametrize("size,dtype", [(40, torch.float16), (256, torch.float16), (64, torch.float32)])
def test_what_the_kernel_cannot_compute_is_refused(size: int, dtype: torch.dtype) -> None:
    """Fails if a head size or dtype without a kernel is launched."""
    inputs = random_inputs(13, dtype, 1, 4, 5, 1, 1, size)
    with pytest.raises(AttentionError, match=f"head size {size} is not|float16 and bfloat16, not float32"):
        attend_rows(*inputs, 0.2)


@pytest.mark.skipif(not GPU, reason="no CUDA device here")
@pytest.mark.parametrize("dtype", LIMIT)
def test_the_op_runs_the_kernel_on_a_gpu(dtype: torch.dtype) -> None:
    """Fails if the op on CUDA does not run the kernel, gives another result, or synchronises with the GPU."""
    inputs = random_inputs(14, dtype, 2, 40, 300, 2, 7, 128)
    want = attend_rows(*inputs, 0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = sparse_suffix_attention(*inputs, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out, want)
