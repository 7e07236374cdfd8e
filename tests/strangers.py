"""Turns a good checkpoint directory into typical wrong ones, for tests of the error messages.

both(put("optimizer.pt"), remove(SINGLE))(write(directory))
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from checkpoints import random_weights, raw_config, write_checkpoint

from dpad.runtime.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = (f"model-{shard:05}-of-00002.safetensors" for shard in (1, 2))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 16059522400\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"

Make = Callable[[Path], Any]


def put(name: str, content: bytes | str = b"", *, instead: bool = False) -> Make:
    """Write a file; with `instead` the weights are removed."""

    def write(directory: Path) -> None:
        if instead:
            (directory / SINGLE).unlink()
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def both(*makes: Make) -> Make:
    """Apply changes one after the other."""
    return lambda directory: [make(directory) for make in makes]


def move(name: str, target: str) -> Make:
    """Rename a file."""

    def rename(directory: Path) -> None:
        (directory / target).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).rename(directory / target)

    return rename


def remove(*names: str) -> Make:
    """Delete files."""
    return lambda directory: [(directory / name).unlink() for name in names]


def renamed(change: Callable[[str], str]) -> Make:
    """Give every tensor another name."""

    def edit(directory: Path) -> None:
        weights = safetensors.torch.load_file(directory / SINGLE)
        safetensors.torch.save_file({change(name): tensor for name, tensor in weights.items()}, directory / SINGLE)

    return edit


def configured(**changes: Any) -> Make:
    """Change keys of config.json."""

    def edit(directory: Path) -> None:
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(raw | changes))

    return edit


def cut(name: str, keep: int) -> Make:
    """Keep only the first bytes of a file."""
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:keep])


def write(directory: Path, shards: int = 1) -> Path:
    """A good Dream checkpoint of one layer."""
    raw = raw_config("dream", layers=1)
    return write_checkpoint(directory, raw, random_weights(raw, seed=4), shards)


def assert_said(error: CheckpointError, words: tuple[str, ...]) -> None:
    """Assert that the message is one line with these words, and without those that begin with "!"."""
    said = str(error)
    assert "\n" not in said, said
    assert all((word[1:] not in said) if word.startswith("!") else (word in said) for word in words), said
