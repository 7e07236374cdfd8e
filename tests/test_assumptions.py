"""Defaults for keys that config.json leaves out are reported, and a contradicting name or key stops the export."""

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import write_source
from checkpoints import random_weights, raw_config, write_checkpoint
from click.testing import CliRunner
from heard import heard

from dpad.cli import main
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.errors import CheckpointError

LENGTHS = {"sdar": ("block_size", 4), "fast_dllm": ("bd_size", 32)}
each_family = pytest.mark.parametrize("family", LENGTHS)


def write(directory: Path, family: str, **changes: Any) -> Path:
    """A checkpoint whose config.json names no block length except by `changes`."""
    raw = raw_config(family, layers=1)
    weights = random_weights(raw)
    raw = {key: value for key, value in raw.items() if key != LENGTHS[family][0]} | changes
    return write_checkpoint(directory, raw, weights)


@each_family
def test_what_is_assumed_is_said(tmp_path: Path, family: str) -> None:
    """Fails if export or plan assumes a block length without a message."""
    key, length = LENGTHS[family]
    source = write(tmp_path / "model", family)
    [line] = [line for line in heard(source) if "is assumed," in line]
    assert f"names no {key}: {length} is assumed" in line
    planned = CliRunner().invoke(main, ["plan", str(source)])
    assert line in planned.output and planned.exit_code == 0
    said = write(tmp_path / "said", family, **{key: length})
    assert not [line for line in heard(said) if "is assumed," in line]


@each_family
def test_generation_config_may_say_otherwise(tmp_path: Path, family: str) -> None:
    """Fails if generation_config.json has a block length and another one is used."""
    source = write(tmp_path / "model", family)
    (source / "generation_config.json").write_text('{"block_length": 16}')
    with pytest.raises(CheckpointError, match=r"generation_config.json says block_length=16.*put \"b"):
        heard(source)
    (source / "generation_config.json").write_text(json.dumps({"block_length": LENGTHS[family][1], "bd_size": None}))
    assert heard(source)


NAMES = [
    "SDAR-4B-Chat-b64",
    "SDAR-4B-Chat-b64-sft",
    "sdar_block16",
    "sdar-block-size-16",
    "sdar.BLOCK_LENGTH_16",
    "b8",
    "SDAR-b64/checkpoint-500",
    "SDAR-bs16",
    "SDAR-4B-blk_8",
    "sdar-blocklen=16",
    "sdar-16block",
    "SDAR-4B-Chat-b16/output",
    "SDAR-4B-Chat-b16/last",
    "SDAR-4B-Chat-b16/output/best",
    "SDAR-4B-Chat-b16/main",
    "SDAR-4B-Chat-b16/epoch_3_step_200",
    "models--JetLM--SDAR-4B-b64/snapshots/0123456789abcdef0123456789abcdef01234567",
]


@pytest.mark.parametrize("name", NAMES)
@each_family
def test_a_name_that_says_otherwise_stops_the_export(tmp_path: Path, family: str, name: str) -> None:
    """Fails if a checkpoint whose name states another block length is exported with the default one."""
    key, length = LENGTHS[family]
    for source in (write(tmp_path / name, family), write(tmp_path / "mine", family, _name_or_path=f"/data/{name}/")):
        if source.name == "mine" and "/" in name:
            continue
        with pytest.raises(CheckpointError) as caught:
            heard(source)
        assert all(word in str(caught.value) for word in ("says blocks of", f'"{key}"', f"means {length}"))
        assert str(caught.value) in CliRunner().invoke(main, ["plan", str(source)]).output
    sure = write(tmp_path / name, family, **{key: length})
    assert not [line for line in heard(sure) if "blocks of" in line], "config.json has the last word"


@pytest.mark.parametrize(
    "name",
    [
        "SDAR-4B-it",
        "SDAR-1.7B-x",
        "Fast_dLLM_v2_7B",
        "sdar-bf16",
        "b",
        "x-lib32",
        "sdar-v2.b",
        "model-b200",
        "run-b2",
        "SDAR-4B-mine",
        "SDAR-16b",
        "sdar-bs100",
        "SDAR-4B/output",
        "my-4block",
    ],
)
def test_other_names_stop_nothing(tmp_path: Path, name: str) -> None:
    """Fails if a size, a dtype or a word in a name is read as a block length."""
    assert heard(write(tmp_path / name, "sdar"))


@each_family
@pytest.mark.parametrize("other", ["block_size", "block_length", "bd_size"])
def test_a_key_that_says_otherwise_stops_the_export(tmp_path: Path, family: str, other: str) -> None:
    """Fails if a block length under another key is ignored although it differs."""
    key, length = LENGTHS[family]
    if other == key:
        return
    for changes in ({other: 16}, {other: 16, key: length}, {other: "16"}):
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(write(tmp_path, family, **changes))
        assert all(word in str(caught.value) for word in (other, "16", key, str(length))), str(caught.value)
    assert Checkpoint.open(write(tmp_path, family, **{other: length})).config.block_length == length
    assert Checkpoint.open(write(tmp_path, family, **{other: 16, key: 16})).config.block_length == 16


@each_family
@pytest.mark.parametrize(
    "other", ["diffusion_block_size", "training_block_size", "block_len", "blocksize", "blockLength"]
)
def test_any_key_of_a_block_length_is_heard(tmp_path: Path, family: str, other: str) -> None:
    """Fails if a trainer's key for the block length, in config.json or nested one level, is ignored."""
    key, length = LENGTHS[family]
    for changes in ({other: 16}, {"dllm": {other: 16}}):
        with pytest.raises(CheckpointError) as caught:
            heard(write(tmp_path / "model", family, **changes))
        assert all(word in str(caught.value) for word in (f"{other}=16", f'"{key}"', str(length))), str(caught.value)
        assert heard(write(tmp_path / "model", family, **changes, **{key: 8})), (
            "the key of the family has the last word"
        )
    for changes in ({other: length}, {other: None}, {other: "auto"}, {"blocks": 16, "block_sizes": [16], "a": {}}):
        assert heard(write(tmp_path / "model", family, **changes))


def test_a_canvas_beyond_the_trained_length_is_said(tmp_path: Path) -> None:
    """Fails if export does not warn of a length of which `plan` warns."""
    source = write_source(tmp_path / "source", layers=1)
    trained = json.loads((source / "config.json").read_text())["max_sequence_length"]
    [line] = heard(source, max_length=trained + 1)
    assert f"trained up to {trained} tokens" in line
    assert line in CliRunner().invoke(main, ["plan", str(source), "--length", str(trained + 1)]).output
    assert heard(source, max_length=trained) == []
