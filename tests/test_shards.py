"""The weights are read from the files that transformers loads, whatever other files are there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bundles import export, write_tokenizer
from checkpoints import Weights, random_weights, raw_config, write_checkpoint
from heard import heard
from transformers import Qwen2ForCausalLM

import dpad
from dpad.export.progress import Progress
from dpad.export.step.weights import convert_shard
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.runtime.errors import ExportError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
RAW = raw_config("dream", layers=1)


def old(directory: Path) -> None:
    """Write an index and its shards, with old weights."""
    write_checkpoint(directory, RAW, random_weights(RAW, seed=1), shards=2)


def new(directory: Path) -> None:
    """Write the right weights in a single file."""
    write_checkpoint(directory, RAW, random_weights(RAW, seed=2))


def sharded(directory: Path) -> None:
    """Write the right weights in shards."""
    write_checkpoint(directory, RAW, random_weights(RAW, seed=2), shards=2)


def index_of(*files: str | None) -> Callable[[Path], None]:
    """Write an index that assigns the tensors to `files` in turn; a tensor whose file is None is left out."""

    def write(directory: Path) -> None:
        names = sorted(random_weights(RAW))
        told = {name: files[place % len(files)] for place, name in enumerate(names)}
        weight_map = {name: file for name, file in told.items() if file}
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def stranger(directory: Path) -> None:
    """Write a file of weights that no index names."""
    safetensors.torch.save_file({"x": torch.ones(3)}, directory / "model-00003-of-00003.safetensors")


def folded(directory: Path) -> None:
    """Move the weights into a folder of the same directory, with a link to them."""
    (directory / "weights").mkdir()
    (directory / SINGLE).rename(directory / "weights" / SINGLE)
    (directory / SINGLE).symlink_to(f"weights/{SINGLE}")


FIRST, SECOND = (f"model-{shard:05}-of-00002.safetensors" for shard in (1, 2))

# Changes in order, and the note about them.
STATES: dict[str, tuple[list[Callable[[Path], None]], str]] = {
    "one file": ([new], ""),
    "shards": ([sharded], ""),
    "one file over older shards": ([old, new], f"{SINGLE} is used"),
    "an index whose shards are gone": ([new, index_of("model-00001-of-00004.safetensors")], f"{SINGLE} is used"),
    "an index that is broken": ([new, lambda d: (d / INDEX).write_text("{") and None], f"{SINGLE} is used"),
    "an index that leads elsewhere": ([new, index_of("../secret.safetensors")], f"{SINGLE} is used"),
    "an index of the other shard": ([sharded, index_of(SECOND, FIRST)], ""),
    "an index of some tensors": ([sharded, index_of(FIRST, None, SECOND)], ""),
    "a file that no index names": ([sharded, stranger], "model-00003-of-00003.safetensors is not read"),
    "a link inside": ([new, folded], ""),
}


def opened(directory: Path) -> Weights:
    """The weights that a model would load."""
    checkpoint = Checkpoint.open(directory)
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)
    return dict(model.state_dict())


@pytest.mark.parametrize("state", STATES)
def test_the_weights_are_those_that_transformers_loads(tmp_path: Path, state: str) -> None:
    """Fails if other files are read than by transformers, or ignored files are not reported."""
    makes, said = STATES[state]
    for make in makes:
        make(tmp_path)
    ours = opened(tmp_path)
    notes = Checkpoint.open(tmp_path).notes
    (tmp_path / "config.json").write_text(
        json.dumps(RAW | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    )
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(ours["lm_head.weight"], random_weights(RAW, seed=2)["lm_head.weight"])
    assert said in "".join(notes) and bool(said) == bool(notes)


def test_all_shards_without_their_index(tmp_path: Path) -> None:
    """Fails if a complete set of shards without an index is refused, used without a note or used beside another."""
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    wanted = random_weights(RAW, seed=2)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in opened(tmp_path).items())
    assert f"{INDEX} is missing" in "".join(Checkpoint.open(tmp_path).notes)


def test_an_export_says_what_it_leaves_aside(tmp_path: Path) -> None:
    """Fails if the export does not report the ignored shards."""
    old(tmp_path)
    new(tmp_path)
    write_tokenizer(tmp_path)
    assert any(f"{SINGLE} is used" in line and INDEX in line for line in heard(tmp_path))


def test_a_matrix_of_zeros_is_said(tmp_path: Path) -> None:
    """Fails if a matrix of zeros, as in an unfinished download, is not reported."""
    weights = random_weights(RAW)
    weights["model.layers.0.mlp.up_proj.weight"].zero_()
    weights["model.layers.0.self_attn.q_proj.bias"].zero_()
    [line] = [line for line in heard(write_checkpoint(tmp_path, RAW, weights)) if "only zeros" in line]
    assert "up_proj.weight" in line and SINGLE in line


def test_mostly_zeros_are_an_unfinished_download(tmp_path: Path) -> None:
    """Fails if a file with mostly zeros is exported with a warning for each tensor."""
    weights = random_weights(RAW)
    for name in sorted(weights)[2:]:
        weights[name].zero_()
    with pytest.raises(ExportError, match="matrices contain only zeros.*unfinished; fetch it again"):
        heard(write_checkpoint(tmp_path, RAW, weights))


BUFFERS = ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq")


def test_recomputed_buffers_are_left_out_everywhere(tmp_path: Path) -> None:
    """Fails if a buffer that models compute themselves stops an export or engine, sets the dtype, or is converted."""
    weights = random_weights(RAW, dtype=torch.float16) | {name: torch.ones(16) for name in BUFFERS}
    weights |= {
        "model.embeddings.position_ids": torch.arange(16)[None],
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.0.self_attn.causal_mask": torch.ones(4, 4, dtype=torch.bool),
    }
    source = write_checkpoint(tmp_path / "source", RAW, weights)
    write_tokenizer(source)
    bundle = export(source, tmp_path / "out", dtypes=("float32",), weights=("full", "int4"))
    convert_shard(source / SINGLE, tmp_path / "converted", "bfloat16", Progress())
    written = (tmp_path / "converted", bundle.path(f"float32-weights-int4/{SINGLE}"))
    assert not any(BUFFERS[0] in safetensors.torch.load_file(path) for path in written)
    assert BUFFERS[0] in safetensors.torch.load_file(bundle.path(f"float32/{SINGLE}")), "linked as it is"
    texts = []
    for engine in ("eager", "onnxruntime-cpu"):
        with dpad.load(tmp_path / "out", engine=engine) as model:
            texts.append(model.generate("w5 w6", gen_length=32).token_ids)
    assert texts[0] == texts[1]
