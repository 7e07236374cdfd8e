"""Errors for mismatched shards, and for folders beside, above or below a checkpoint, name the cause.

Files that trainers and hubs leave beside a good checkpoint are no obstacle.
"""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from strangers import (
    FIRST,
    INDEX,
    POINTER,
    SECOND,
    SINGLE,
    Make,
    assert_said,
    both,
    configured,
    cut,
    move,
    put,
    remove,
    write,
)

from dpad.export.hub import read_config
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.errors import CheckpointError

SHARDED: dict[str, tuple[Make, tuple[str, ...]]] = {
    "a shard lacking": (remove(SECOND), (SECOND, "missing", INDEX, "1 of 2", "download it again")),
    "another save's index": (
        both(move(FIRST, "model-00001-of-00003.safetensors"), remove(SECOND)),
        (FIRST, "0 of 2", "model-00001-of-00003.safetensors", "older"),
    ),
    "a shard on its way": (move(SECOND, f"{SECOND}.part"), (f"{SECOND}.part", "unfinished")),
    "a shard's pointer": (put(SECOND, POINTER), (SECOND, "git lfs pull", "!again")),
    "a shard cut": (cut(SECOND, 5000), (SECOND, "5000 of its")),
    "a shard twice": (lambda d: (d / SECOND).write_bytes((d / FIRST).read_bytes()), (FIRST, SECOND, "both")),
    "index of pickles": (
        put(INDEX, '{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}'),
        ("pytorch_model-00001", "is not safetensors"),
    ),
    "index is a pointer": (put(INDEX, POINTER), (INDEX, "git lfs pull")),
    "index of a part": (
        put(INDEX, json.dumps({"weight_map": {"model.norm.weight": FIRST}})),
        ("missing tensors", SECOND),
    ),
    "one file of a part": (lambda d: (d / FIRST).rename(d / SINGLE), ("missing tensors", f"{SINGLE} is used", INDEX)),
}


@pytest.mark.parametrize("case", SHARDED)
def test_each_state_of_shards_is_named(tmp_path: Path, case: str) -> None:
    """Fails if missing, foreign or broken shards are accepted, or the message does not name the shard."""
    make, words = SHARDED[case]
    make(write(tmp_path, shards=2))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert_said(caught.value, words)


def hub_repository(directory: Path) -> Path:
    """A repository in the hub's cache."""
    write(directory / "snapshots" / "0123abcd")
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text("0123abcd")
    return directory


ABOVE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "the hub's repository": (hub_repository, ("hub's cache", "pass", "model/snapshots/0123abcd")),
    "the hub's cache": (lambda d: hub_repository(d / "models--JetLM--SDAR"), ("hub's cache", "JetLM/SDAR")),
    "snapshots": (lambda d: write(d / "0123abcd"), ("pass", "model/0123abcd")),
    "a trainer's output": (
        lambda d: [write(d / f"checkpoint-{step}") for step in (500, 1000)],
        ("pass", "model/checkpoint-1000"),
    ),
    "a bundle": (put("manifest.json", '{"contract": {}}'), ("is a bundle",)),
    "Meta's format": (both(put("params.json", "{}"), put("consolidated.00.pth")), ("params.json", "Meta")),
    "nothing": (lambda d: d.mkdir(), ("is empty",)),
    "an archive": (put("model.zip"), ("model.zip", "unpack")),
    "sharded training": (put("__0_0.distcp"), (".distcp", "merge-weights")),
    "a download": (put("config.json.incomplete"), ("config.json.incomplete", "unfinished")),
    "something else": (put("notes.txt"), ("a checkpoint directory?", "!again")),
}


@pytest.mark.parametrize("case", ABOVE)
def test_the_folder_beside_the_right_one(tmp_path: Path, case: str) -> None:
    """Fails if the error for a directory without config.json does not name the right directory."""
    make, words = ABOVE[case]
    make(tmp_path / "model")
    for opened in (Checkpoint.open, lambda directory: read_config(str(directory))):
        if case == "a bundle" and opened is not Checkpoint.open:
            continue  # `dpad plan` reads a bundle's manifest instead
        with pytest.raises(CheckpointError) as caught:
            opened(tmp_path / "model")
        assert_said(caught.value, ("config.json is missing", *words))


def test_what_is_only_left_over_is_no_obstacle(tmp_path: Path) -> None:
    """Fails if files that trainers and hubs leave stop an export, or are ignored without a message."""
    write(tmp_path)
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state_0.pth", "model.gguf"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "global_step500").mkdir()
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/download/old.incomplete").touch()
    configured(quantization_config={"load_in_4bit": False, "load_in_8bit": False})(tmp_path)
    (tmp_path / INDEX).write_bytes(b"")
    (tmp_path / "model.fp16.safetensors").write_bytes(POINTER)
    checkpoint = Checkpoint.open(tmp_path)
    assert [shard.name for shard in checkpoint.shards] == [SINGLE] and checkpoint.notes


def test_a_folder_of_folders_ends(tmp_path: Path) -> None:
    """Fails if the search for a checkpoint has no limit of depth, or follows circular links."""
    deep = write(tmp_path / "model")
    (deep / SINGLE).unlink()
    (deep / "round").symlink_to(deep, target_is_directory=True)
    (deep / "a/b/c/d").mkdir(parents=True)
    safetensors.torch.save_file({"x": torch.ones(1)}, deep / "a/b/c/d/model.safetensors")
    with pytest.raises(CheckpointError, match="no weights are there at all"):
        Checkpoint.open(deep)
