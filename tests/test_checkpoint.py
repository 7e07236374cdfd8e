"""Reading checkpoint directories, with and without shards, and errors for wrong ones.

A directory is untrusted. Whatever it holds, the result is a checkpoint or a `CheckpointError` that names the file, the
key or the tensor.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import FAMILIES, MASK, Weights, random_weights, raw_config, weight_shapes, write_checkpoint

from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.runtime.errors import CheckpointError

each_family = pytest.mark.parametrize("family", FAMILIES)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INDEX = "model.safetensors.index.json"


def write(directory: Path, family: str = "llada", shards: int = 1, **changes: Any) -> tuple[dict[str, Any], Weights]:
    """Write a good checkpoint of one layer to `directory`."""
    raw = raw_config(family, layers=1, **changes)
    weights = random_weights(raw, seed=4)
    write_checkpoint(directory, raw, weights, shards)
    return raw, weights


@each_family
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_loads_what_was_written(tmp_path: Path, family: str, dtype: str, shards: int) -> None:
    """Fails if a tensor is lost, renamed, cast, or taken from the wrong shard or offset."""
    raw = raw_config(family, layers=1)
    weights = random_weights(raw, dtype=DTYPES[dtype])
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, raw, weights, shards))
    assert (checkpoint.dtype, len(checkpoint.shards)) == (dtype, shards)
    assert checkpoint.tensors.keys() == weights.keys() == weight_shapes(raw).keys()
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, DTYPES[dtype])
    state = model.state_dict()
    for name, entry in checkpoint.tensors.items():
        assert torch.equal(state[name], weights[name]) and entry.shape == tuple(weights[name].shape)
        data = entry.file.read_bytes()[entry.offset : entry.offset + entry.length]
        assert data == weights[name].view(torch.uint8).numpy().tobytes()
    assert not any(parameter.requires_grad for parameter in model.parameters())


HEADS = {
    "llada": ("model.transformer.ff_out.weight", "model.transformer.wte.weight"),
    "dream": ("lm_head.weight", "model.embed_tokens.weight"),
}


@each_family
def test_a_tied_head_may_come_as_a_copy(tmp_path: Path, family: str) -> None:
    """Fails if a tied checkpoint with a copy of the head is refused, or a head of another shape is accepted."""
    raw, weights = write(tmp_path, family, tied=True)
    copy, embedding = HEADS[family]
    write_checkpoint(tmp_path, raw, weights | {copy: weights[embedding].clone()})
    checkpoint = Checkpoint.open(tmp_path)
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)
    assert model.state_dict().keys() == weights.keys()
    write_checkpoint(tmp_path, raw, weights | {copy: weights[embedding][:3].clone()})
    assert_refused(tmp_path, (copy, "(3, 64)"))


Breaks = Callable[[Path], None]


def edit_config(**changes: Any) -> Breaks:
    """Change config.json; the value `...` removes a key."""

    def edit(directory: Path) -> None:
        path = directory / "config.json"
        raw = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))

    return edit


def put(name: str, content: bytes) -> Breaks:
    """Replace a file."""
    return lambda directory: (directory / name).write_bytes(content) and None


def remove(name: str) -> Breaks:
    """Delete a file."""
    return lambda directory: (directory / name).unlink()


def truncate(name: str, keep: float) -> Breaks:
    """Cut a file to a share of its size."""

    def cut(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(len(content) * keep)])

    return cut


def edit_weights(change: Callable[[Weights], Any]) -> Breaks:
    """Change tensors of an unsharded checkpoint."""

    def edit(directory: Path) -> None:
        weights = safetensors.torch.load_file(directory / "model.safetensors")
        change(weights)
        safetensors.torch.save_file({n: t.clone() for n, t in weights.items()}, directory / "model.safetensors")

    return edit


def pickle_only(directory: Path) -> None:
    """Replace safetensors by pickle, as in old repositories."""
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


Q, NORM = "model.transformer.blocks.0.q_proj.weight", "model.transformer.ln_f.weight"
SHARD = "model-00002-of-00003.safetensors"

SUPPORTED = ("LLaDAModelLM", "DreamModel", "SDARForCausalLM", "Fast_dLLM_QwenForCausalLM")

BROKEN: dict[str, tuple[Breaks, tuple[str, ...]]] = {
    "no config": (remove("config.json"), ("config.json", "missing")),
    "config cut": (truncate("config.json", 0.5), ("config.json", "JSON")),
    "config empty": (put("config.json", b""), ("config.json",)),
    "config array": (put("config.json", b"[1, 2]"), ("config.json", "object")),
    "config not text": (put("config.json", b"\xff\xfe\x00"), ("config.json",)),
    "config nested": (put("config.json", b"[" * 100_000), ("config.json",)),
    "no weights": (remove("model.safetensors"), ("model.safetensors", "missing", "download it again")),
    "pickle only": (pickle_only, ("pytorch_model.bin", "pickle")),
    "weights cut": (truncate("model.safetensors", 0.7), ("model.safetensors",)),
    "weights empty": (put("model.safetensors", b""), ("model.safetensors",)),
    "weights are a page": (put("model.safetensors", b"<!DOCTYPE html>" * 40), ("model.safetensors",)),
    "LLaDA-MoE": (
        edit_config(architectures=["LLaDAMoEModelLM"], model_type="llada"),
        ("LLaDAMoEModelLM", "LLaDA-MoE", "mixture of experts", "not supported yet", *SUPPORTED),
    ),
    "LLaDA2": (edit_config(architectures=["LLaDA2MoeModelLM"]), ("LLaDA2MoeModelLM", "LLaDA2,", "yet", *SUPPORTED)),
    "causal model": (edit_config(architectures=["LlamaForCausalLM"]), ("LlamaForCausalLM", "LLaDAModelLM")),
    "no architecture": (edit_config(architectures=...), ("architectures",)),
    "two architectures": (edit_config(architectures=["LLaDAModelLM"] * 2), ("architectures",)),
    "architecture a list": (edit_config(architectures=[["LLaDAModelLM"]]), ("architectures",)),
    "key missing": (edit_config(n_layers=...), ("n_layers",)),
    "mask missing": (edit_config(mask_token_id=...), ("mask_token_id",)),
    "base missing": (edit_config(rope_theta=...), ("rope_theta",)),
    "alibi": (edit_config(alibi=True), ("alibi", "True")),
    "clipped": (edit_config(clip_qkv=8.0), ("clip_qkv", "8.0", "None")),
    "block type": (edit_config(block_type="sequential"), ("block_type", "sequential")),
    "activation": (edit_config(activation_type="gelu"), ("activation_type", "gelu")),
    "layers null": (edit_config(n_layers=None), ("n_layers",)),
    "layers a string": (edit_config(n_layers="2"), ("n_layers",)),
    "layers a float": (edit_config(n_layers=1.5), ("n_layers",)),
    "heads 0": (edit_config(n_heads=0), ("heads",)),
    "heads negative": (edit_config(n_heads=-2), ("heads",)),
    "heads do not divide width": (edit_config(n_heads=5, n_kv_heads=5), ("5", "64")),
    "kv heads do not divide": (edit_config(n_heads=4, n_kv_heads=3), ("4", "3")),
    "odd head size": (edit_config(d_model=6, n_heads=2, n_kv_heads=2), ("head",)),
    "base a string": (edit_config(rope_theta="many"), ("rope_theta",)),
    "base null": (edit_config(rope_theta=None), ("rope_theta",)),
    "vocabulary negative": (edit_config(embedding_size=None, vocab_size=-5), ("vocab_size", "-5")),
    "mask outside": (edit_config(mask_token_id=128), ("mask_token_id", "128")),
    "eos an empty list": (edit_config(eos_token_id=[]), ("eos_token_id",)),
    "eos a list of words": (edit_config(eos_token_id=["</s>"]), ("eos_token_id", "</s>")),
    "rotation scaled": (edit_config(rope_scaling={"type": "linear", "factor": 2.0}), ("rope_scaling", "linear")),
    "mask null": (edit_config(mask_token_id=None), ("mask_token_id",)),
    "mask is eos": (edit_config(eos_token_id=MASK), ("eos_token_id",)),
    "length 0": (edit_config(max_sequence_length=0), ("max_sequence_length",)),
    "length a string": (edit_config(max_sequence_length="long"), ("max_sequence_length",)),
    "wider than the weights": (edit_config(d_model=128), ("shape", "128")),
    "more layers than weights": (edit_config(n_layers=2), ("missing", "blocks.1")),
    "fewer layers than weights": (edit_config(n_layers=0), ("layers",)),
    "tensor missing": (edit_weights(lambda w: w.pop(NORM)), (NORM, "missing")),
    "tensor extra": (edit_weights(lambda w: w.update(lora=torch.zeros(1))), ("lora", "unexpected")),
    "tensor shape": (edit_weights(lambda w: w.update({Q: w[Q][:32]})), (Q, "(32, 64)", "(64, 64)")),
    "tensor transposed dims": (edit_weights(lambda w: w.update({NORM: w[NORM][None]})), (NORM, "(1, 64)")),
    "tensor dtype": (edit_weights(lambda w: w.update({Q: w[Q].half()})), ("float16", "float32")),
    "integer tensor": (edit_weights(lambda w: w.update({Q: w[Q].to(torch.int8)})), (Q, "I8")),
    "eight bits": (edit_weights(lambda w: w.update({Q: w[Q].to(torch.float8_e4m3fn)})), (Q, "F8_E4M3")),
}

BROKEN_SHARDS: dict[str, tuple[Breaks, tuple[str, ...]]] = {
    "shard missing": (remove(SHARD), (SHARD, "missing", INDEX, "download it again")),
    "shard cut": (truncate(SHARD, 0.9), (SHARD,)),
    "shard without its header": (truncate(SHARD, 0.001), (SHARD,)),
    "index broken": (put(INDEX, b"{"), (INDEX,)),
    "index array": (put(INDEX, b"[]"), (INDEX,)),
    "index without a map": (put(INDEX, b"{}"), (INDEX, "weight_map")),
    "index map empty": (put(INDEX, b'{"weight_map": {}}'), (INDEX, "weight_map")),
    "index map of a list": (put(INDEX, b'{"weight_map": {"a": ["b"]}}'), ("b",)),
    "index leaves the folder": (
        put(INDEX, b'{"weight_map": {"a": "../secret.safetensors"}}'),
        (INDEX, "../secret"),
    ),
    "index absolute": (put(INDEX, b'{"weight_map": {"a": "/etc/passwd"}}'), (INDEX, "/etc/passwd")),
    "index windows path": (put(INDEX, b'{"weight_map": {"a": "..\\\\secret.safetensors"}}'), ("secret",)),
    "index dots": (put(INDEX, b'{"weight_map": {"a": ".."}}'), ("..",)),
    "index empty name": (put(INDEX, b'{"weight_map": {"a": ""}}'), ()),
    "index nul": (put(INDEX, b'{"weight_map": {"a": "a\\u0000b.safetensors"}}'), ("b.safetensors",)),
}


def assert_refused(directory: Path, words: tuple[str, ...]) -> None:
    """Assert that opening raises `CheckpointError` with these words."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories(tmp_path: Path, case: str) -> None:
    """Fails if a wrong checkpoint opens, raises another error, or the error lacks the cause."""
    breaks, words = BROKEN[case]
    write(tmp_path)
    breaks(tmp_path)
    assert_refused(tmp_path, words)


@pytest.mark.parametrize("case", BROKEN_SHARDS)
def test_broken_shards(tmp_path: Path, case: str) -> None:
    """Fails if a missing, truncated or outside shard is not an error."""
    breaks, words = BROKEN_SHARDS[case]
    write(tmp_path, shards=3)
    breaks(tmp_path)
    assert_refused(tmp_path, words)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """Fails if one of two tensors with the same name is silently used."""
    write(tmp_path, shards=3)
    name = "model-00001-of-00003.safetensors"
    weights = safetensors.torch.load_file(tmp_path / name)
    [other, *_] = safetensors.torch.load_file(tmp_path / SHARD).items()
    safetensors.torch.save_file(weights | {other[0]: other[1] + 1}, tmp_path / name)
    assert_refused(tmp_path, (other[0],))


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    """Fails if a wrong path raises an OSError."""
    assert_refused(tmp_path / "nowhere", ("nowhere",))
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", ("file",))
    write(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").mkdir()
    assert_refused(tmp_path / "model", ("config.json",))


def test_unused_config_keys_are_ignored(tmp_path: Path) -> None:
    """Fails if keys that do not change the computation are refused; the published files have many."""
    write(tmp_path)
    edit_config(transformers_version="4.38", init_device="meta", alibi=None, auto_map={"AutoConfig": "x.Y"})(tmp_path)
    assert Checkpoint.open(tmp_path).config.layers == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": "default"},
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 0},
        {"head_dim": -32},
        {"hidden_size": None},
        {"architectures": ["Qwen2ForCausalLM"]},
    ],
)
def test_broken_dream_configs(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Fails if a Dream config for another computation is accepted."""
    write(tmp_path, "dream")
    edit_config(**changes)(tmp_path)
    [key] = changes
    words = {"num_attention_heads": "head", "head_dim": "head"}.get(key, key)
    assert_refused(tmp_path, (words,))


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """Fails if opening reads the data of a sparse file of 40 GB."""
    raw = raw_config("llada", layers=1, width=4096, heads=32, kv_heads=32, mlp_width=4096)
    raw |= {"vocab_size": 2**21, "embedding_size": 2**21}
    header, end = {}, 0
    for name, shape in weight_shapes(raw).items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 30e9 and Checkpoint.open(tmp_path).dtype == "bfloat16"
