"""Weights for serving: merged without a second copy; packed ones multiplied by the rules of their formats."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import BLOCK_CAUSAL, FAMILIES, contract_of, random_weights, raw_config, write_checkpoint
from compiled import compiled_engine
from decoding import run
from test_compiled import UNEQUAL, options_for

from dpad.export.progress import Progress
from dpad.export.step.pack import Packing, place_packed
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.models.compiled.products import Fp8, Int4, Unpacked, from_tiles, in_bytes, packed_product
from dpad.models.compiled.weights import load_merged
from dpad.models.packed import Packed
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.bundle.variant import PACKED
from dpad.runtime.errors import CheckpointError

CPU = torch.device("cpu")
KINDS = {"int4": Int4, "int8": Unpacked, "fp8": Fp8}


def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A stand-in for attention: depends on all three tensors, and has the shape of the query."""
    group = query.shape[2] // key.shape[2]
    return query * key.repeat_interleave(group, 2).tanh() + value.repeat_interleave(group, 2)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(2, 26).reshape(2, 12)
    with torch.inference_mode():
        found: torch.Tensor = model.logits(model(ids, torch.arange(12).expand(2, -1), attend))
    return found


def checkpoint(directory: Path, family: str, dtype: str = "float32", **changes: Any) -> Checkpoint:
    raw = raw_config(family, **changes)
    return Checkpoint.open(write_checkpoint(directory, raw, random_weights(raw, dtype=getattr(torch, dtype)), shards=3))


def both(source: Checkpoint, dtype: torch.dtype, shards: tuple[Path, ...] | None = None) -> tuple[Any, Any]:
    """The merged model, and the model as loaded by the reference."""
    parts = source.architecture, source.config, shards or source.shards
    return load_merged(*parts, dtype, CPU), load_model(*parts, dtype)


@pytest.mark.parametrize("family", [*FAMILIES, *BLOCK_CAUSAL])
@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_the_checkpoint_once(tmp_path: Path, family: str, tied: bool) -> None:
    """Fails if a part, a bias or a tied head is wrong, or the model holds a weight twice."""
    source = checkpoint(tmp_path, family, tied=tied, **({"include_qkv_bias": True} if family == "llada" else {}))
    merged, reference = both(source, torch.float32)
    torch.testing.assert_close(logits(merged), logits(reference), rtol=1e-5, atol=1e-5)
    held = {t.untyped_storage().data_ptr(): t for t in (*merged.parameters(), *merged.buffers())}
    wanted = sum(parameter.nbytes for parameter in reference.parameters())
    assert sum(tensor.nbytes for tensor in held.values()) == wanted
    assert not any(tensor.is_meta for tensor in held.values())
    products = [module for module in merged.modules() if type(module).__name__ == "Merged"]
    assert len(products) == 2 * source.config.layers


@pytest.mark.parametrize(
    ("stored", "dtype"), [("bfloat16", "float16"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_weights_are_cast_to_the_rows(tmp_path: Path, stored: str, dtype: str) -> None:
    """Fails if a checkpoint in another dtype is refused, or one of its tensors is not cast."""
    merged, reference = both(checkpoint(tmp_path, "dream", stored), getattr(torch, dtype))
    assert {tensor.dtype for tensor in (*merged.parameters(), *merged.buffers())} == {getattr(torch, dtype)}
    torch.testing.assert_close(logits(merged), logits(reference), rtol=2e-2, atol=2e-1 if dtype != "float32" else 1e-5)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Fails if weights of another model give an error of the library."""
    source, other = checkpoint(tmp_path / "a", "dream"), checkpoint(tmp_path / "b", "dream", layers=3)
    with pytest.raises(CheckpointError, match="missing tensors"):
        load_merged(source.architecture, other.config, source.shards, torch.float32, CPU)


@pytest.mark.parametrize("family", ["llada", "fast_dllm"])
@pytest.mark.parametrize("weights", PACKED)
def test_packed_weights_compute_what_they_unpack_to(tmp_path: Path, family: str, weights: str) -> None:
    """Fails if parts of a merged product are mixed up, or a format does not use its kind of product."""
    source = checkpoint(tmp_path / "source", family, "bfloat16")
    shards = tuple(place_packed(source, tmp_path / "packed", "float32", Packing(weights), Progress()))
    merged, reference = both(source, torch.float32, shards)
    found, wanted = logits(merged), logits(reference)
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < (0.1 if weights == "fp8" else 1e-5)  # fp8 rounds rows too
    kinds = [type(module) for module in merged.modules() if isinstance(module, tuple(KINDS.values()))]
    assert kinds == 4 * source.config.layers * [KINDS[weights]]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_packed_steps_decode_as_the_reference(tmp_path: Path, weights: str) -> None:
    """Fails if a compiled step over packed weights decodes other tokens than the reference."""
    source = checkpoint(tmp_path / "source", "dream")
    shards = tuple(place_packed(source, tmp_path / "packed", "float32", Packing(weights), Progress()))
    _, reference = both(source, torch.float32, shards)
    options = options_for("dream", "dual")
    with compiled_engine(source.directory, compiled=False, shards=shards) as engine:
        ours = run(engine, UNEQUAL, options)
    theirs = run(TorchEngine(reference, contract_of(source), "float32"), UNEQUAL, options)
    assert [(one.tokens, one.nfe) for one in ours] == [(one.tokens, one.nfe) for one in theirs]


def packed(weights: str, inputs: int, outputs: int, group: int = 32, dtype: torch.dtype = torch.float32) -> Packed:
    noise = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs + outputs))
    return Packing(weights, group).pack(noise, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_int4_multiplies_what_the_codes_say(dtype: str, group: int) -> None:
    """Fails if a code is used for another input or output, loses its sign, or gets another group's scale."""
    given = packed("int4", 512, 96, group, getattr(torch, dtype))
    product, bias = Int4(given, None), torch.randn(96).to(getattr(torch, dtype))
    assert Int4.takes(given)
    x = torch.eye(512, dtype=getattr(torch, dtype))
    torch.testing.assert_close(
        product(x), given.unpack(x.dtype).T, rtol=1e-2 if dtype != "float32" else 1e-6, atol=1e-3
    )
    torch.testing.assert_close(Int4(given, bias)(x[None]), product(x)[None] + bias)


@pytest.mark.parametrize("inner", [2, 4, 8])
def test_tiles_of_a_gpu_are_unpacked(inner: int) -> None:
    """Fails if a code is read from another place than where PyTorch's packing (int4mm.cu) puts it in a lane."""
    codes = torch.randint(0, 16, (24, 32 * inner), generator=torch.Generator().manual_seed(inner))
    held = in_bytes(codes).numpy().astype(np.int64)
    tiles = np.zeros((3, 2, 32, inner // 2), dtype=np.int64)
    for tile, outer, lane, pair in np.ndindex(*tiles.shape):
        base = (outer * inner + 2 * pair) * 16 // 2
        values = [held[8 * tile + lane // 4, base + lane % 4 + step] for step in (0, 4, 8, 12)]
        for place, value in enumerate(values):
            tiles[tile, outer, lane, pair] |= (value >> 4) << (4 * place) | (value & 15) << (16 + 4 * place)
    words = torch.from_numpy(tiles.astype(np.uint32).view(np.int32))
    assert torch.equal(from_tiles(words), codes.int())


def test_fp8_multiplies_rows_in_fp8() -> None:
    """Fails if rows are rounded differently from weights, or use another row's scale, compared in float64."""
    given, bias = packed("fp8", 128, 64), torch.randn(64)
    x = torch.randn(3, 5, 128) * torch.logspace(-4, 4, 15).reshape(3, 5, 1)
    x[1, 2] = 0
    scale = (x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448).double()
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    grid = grid[grid.isfinite()].unique()
    middles = (grid[1:] + grid[:-1]) / 2
    rounded = grid[torch.bucketize(x.double() / scale, middles)] * scale
    wanted = rounded @ given.unpack(torch.float64).T + bias.double()
    found = Fp8(given, bias)(x)
    error = (found - wanted).abs().amax(-1) / wanted.abs().amax(-1)
    assert error.max() < 1e-3  # of 2,000 values a tie may be rounded the other way
    assert torch.equal(found[1, 2], bias)


@pytest.mark.parametrize(
    ("weights", "inputs", "outputs", "group"), [("int4", 48, 32, 16), ("int4", 64, 24, 32), ("fp8", 24, 32, 32)]
)
def test_what_a_kernel_does_not_take_is_unpacked(weights: str, inputs: int, outputs: int, group: int) -> None:
    """Fails if sizes that the kernel does not support give an error of the library."""
    given = packed(weights, inputs, outputs, group)
    product = packed_product(given, None)
    assert isinstance(product, Unpacked)
    x = torch.randn(4, inputs)
    np.testing.assert_allclose(product(x), x @ given.unpack(torch.float32).T, rtol=1e-5, atol=1e-5)
