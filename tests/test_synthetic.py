"""`dpad synth` writes random checkpoints that everything reads like real ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import export
from safetensors import safe_open
from tokenizers import Tokenizer

import dpad
from dpad.export.forecast import synthetic
from dpad.export.forecast.layouts import LAYOUTS
from dpad.export.forecast.synthetic import Summary, write_checkpoint
from dpad.export.progress import Progress
from dpad.export.tokenizer.vocabulary_files import from_parts
from dpad.models.checkpoint.checkpoint import Checkpoint, meta_model, parse_config
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.errors import ExportError

NARROW: dict[str, dict[str, Any]] = {
    "llada": {"d_model": 64, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 96, "n_layers": 3},
    "dream": {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
    },
}


@pytest.fixture(params=tuple(NARROW))
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with a narrow layout and several shards, but the published vocabulary and keys."""
    layout = LAYOUTS[request.param]
    monkeypatch.setitem(LAYOUTS, request.param, replace(layout, config=layout.config | NARROW[request.param]))
    monkeypatch.setattr(synthetic, "_SHARD", 20_000_000)
    return str(request.param)


def write(model: str, out: Path, layers: int | None = None, seed: int = 0) -> Summary:
    return write_checkpoint(model, out, layers, seed, Progress())


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for shard in directory.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize(
    ("name", "count"), [("llada", 8_015_581_184), ("llada-1.5", 8_015_581_184), ("dream", 7_615_616_512)]
)
def test_the_layout_has_as_many_weights_as_the_published_model(name: str, count: int) -> None:
    """Fails if a size in a layout is wrong, so that the number of weights differs from the model card."""
    state = meta_model(*parse_config(LAYOUTS[name].config)).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == count


def test_the_checkpoint_opens_and_exports_like_a_real_one(model: str, tmp_path: Path) -> None:
    """Fails if loader, tokenizer or exporter need a missing file, or the bundle does not say that it is random."""
    summary = write(model, tmp_path / "source")
    checkpoint = Checkpoint.open(tmp_path / "source")
    assert checkpoint.dtype == "bfloat16"
    assert len(checkpoint.shards) == summary.shards > 1
    assert len({path.stat().st_mode for path in (tmp_path / "source").iterdir()}) == 1, (
        "weights that a service cannot read"
    )
    assert summary.size == sum(entry.length for entry in checkpoint.tensors.values())
    bundle = export(tmp_path / "source", tmp_path / "out", dtypes=("float32",), max_length=512)
    assert Bundle.open(bundle.directory).manifest.is_random
    with pytest.warns(UserWarning, match="random weights"):
        opened = dpad.load(bundle.directory)
    with opened as loaded:
        result = loaded.generate("a <|endoftext|> b", gen_length=32, early_termination=False)
        eos = loaded.engine.contract.eos_token_id
    assert len(result.token_ids) == 32
    prompt = result.canvas[: len(result.canvas) - 32].tolist()
    assert eos not in prompt, "text became a special token"


def test_special_tokens_have_the_published_ids(model: str, tmp_path: Path) -> None:
    """Fails if the special tokens of a template have other ids than the published ones."""
    write(model, tmp_path / "source")
    source = tmp_path / "source"
    made = json.dumps(from_parts(source)) if model == "dream" else (source / "tokenizer.json").read_text()
    tokenizer = Tokenizer.from_str(made)
    known = {
        "llada": {"<|startoftext|>": 126080, "<|endoftext|>": 126081, "<|mdm_mask|>": 126336, "<|eot_id|>": 126348},
        "dream": {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|mask|>": 151666},
    }
    assert {text: tokenizer.token_to_id(text) for text in known[model]} == known[model]
    text = "Grüße, 53 + 34 = ?\n日本"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_seed_is_a_checkpoint(model: str, tmp_path: Path) -> None:
    """Fails if a seed gives different weights, two seeds the same, or the number of layers changes a layer."""
    for name, layers, seed in (("a", None, 0), ("b", None, 0), ("c", None, 1), ("d", 1, 0)):
        write(model, tmp_path / name, layers, seed)
    a, b, c, d = (weights(tmp_path / name) for name in "abcd")
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert not any(torch.equal(tensor, c[name]) for name, tensor in a.items() if tensor.ndim == 2)
    assert d.keys() < a.keys()
    assert all(torch.equal(tensor, a[name]) for name, tensor in d.items())


def test_a_directory_in_use_is_left_alone(model: str, tmp_path: Path) -> None:
    """Fails if a checkpoint is written into a directory with other files."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        write(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_without_room_is_named_before_the_work(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a disk that is too small is filled before the error."""
    usage = synthetic.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ExportError, match="GB are free; fewer --layers"):
        write(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(
    failure: BaseException, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a partial checkpoint is left behind."""

    def fail(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(synthetic, "save_shard", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ExportError):
        write(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
