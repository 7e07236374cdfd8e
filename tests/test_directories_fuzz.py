"""Randomly changed checkpoint directories are refused with a reason, or exported with the intended weights.

In a mutant, files are removed, truncated, replaced, renamed, exchanged with another checkpoint's, linked, and values of
its JSON are changed. `intended` determines the right weights in four lines, independently of the code under test.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from bundles import export, write_source
from fuzzing import Tally, fuzz
from heard import heard

import dpad
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.errors import DpadError

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NAMES = (
    SINGLE,
    INDEX,
    *(f"model-{shard:05}-of-{count:05}.safetensors" for count in (2, 3) for shard in range(1, count + 1)),
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors.aria2",
    "model.fp16.safetensors",
    "pytorch_model.bin",
    "generation_config.json",
    "presets.json",
    "additional_chat_templates/rag.jinja",
)
CONTENTS = (
    b"",
    bytes(4096),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    b"../../blobs/0123",
    b"<!DOCTYPE html><html></html>",
    b'{"error": "not found"}',
    b"{}",
    b"[1]",
    b"PK\x03\x04",
)
VALUES = (None, 0, 1, -1, 5, 9, 127, 128, 10**30, 1e308, "4", True, [], [1, 2], [1, 127], {"a": 1}, "gptq", [[1]])
KEYS = ("mask_token_id", "eos_token_id", "quantization_config", "tie_word_embeddings", "block_length", "_name_or_path")

Mutation = Callable[[Path, Path, random.Random], Any]


def files(directory: Path) -> list[Path]:
    """All files, in the same order on every run."""
    return sorted(path for path in directory.rglob("*") if path.is_file() or path.is_symlink())


def put(path: Path, content: bytes) -> None:
    """Write a file; a link in its place is replaced, not followed."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def remove(directory: Path, other: Path, rng: random.Random) -> None:
    """Remove a file."""
    rng.choice(files(directory)).unlink()


def cut(directory: Path, other: Path, rng: random.Random) -> None:
    """Truncate a file."""
    path = rng.choice(files(directory))
    put(path, path.read_bytes()[: rng.randrange(1 + path.stat().st_size)])


def replace(directory: Path, other: Path, rng: random.Random) -> None:
    """Replace a file by something else."""
    put(rng.choice(files(directory)), rng.choice(CONTENTS))


def rename(directory: Path, other: Path, rng: random.Random) -> None:
    """Rename a file to another file's name or to an unknown one."""
    rng.choice(files(directory)).rename(directory / rng.choice((*NAMES[:8], CONFIG, "other.safetensors")))


def exchange(directory: Path, other: Path, rng: random.Random) -> None:
    """Add, or replace a file by, a file of another checkpoint."""
    path = rng.choice(files(other))
    put(directory / path.name, path.read_bytes())


def link(directory: Path, other: Path, rng: random.Random) -> None:
    """Replace a file by a link: inside the directory, outside, broken, or to itself."""
    path = rng.choice(files(directory))
    target = rng.choice((rng.choice(files(directory)), rng.choice(files(other)), directory / "nowhere", path, other))
    path.unlink()
    path.symlink_to(target if rng.random() < 0.5 else os.path.relpath(target, path.parent))


def add(directory: Path, other: Path, rng: random.Random) -> None:
    """Add a file."""
    put(directory / rng.choice(NAMES), rng.choice(CONTENTS))


def edit(directory: Path, other: Path, rng: random.Random) -> None:
    """Change a value of a JSON file."""
    path = rng.choice([path for path in files(directory) if path.suffix == ".json" and path.name != "tokenizer.json"])
    data = json.loads(path.read_text())
    data[rng.choice([*KEYS, *data])] = rng.choice(VALUES)
    put(path, json.dumps(data).encode())


def reindex(directory: Path, other: Path, rng: random.Random) -> None:
    """Change file names in the index, for some tensors or for all."""
    path = directory / INDEX
    data = json.loads(path.read_text()) if path.exists() else {"weight_map": {"model.norm.weight": SINGLE}}
    shard = rng.choice((*NAMES[:7], "other.safetensors", "../secret", "weights.bin"))
    for name in rng.sample(sorted(data["weight_map"]), rng.randint(1, len(data["weight_map"]))):
        data["weight_map"][name] = shard
    put(path, json.dumps(data).encode())


def wrap(directory: Path, other: Path, rng: random.Random) -> None:
    """Rename tensors, change their dtype, or add others."""
    path = rng.choice([path for path in files(directory) if path.suffix == ".safetensors"])
    tensors = safetensors.torch.load_file(path)
    name = rng.choice(sorted(tensors))
    prefix = rng.choice(("module.", "_orig_mod.", "model.", ""))
    changed = {
        "names": {prefix + key: tensor for key, tensor in tensors.items()},
        "dtype": tensors | {name: tensors[name].half()},
        "buffer": tensors | {"model.rotary_emb.inv_freq": torch.ones(8)},
        "more": tensors | {"extra": torch.ones(1)},
        "fewer": {key: tensor for key, tensor in tensors.items() if key != name},
    }
    put(path, safetensors.torch.save(changed[rng.choice(sorted(changed))]))


MUTATIONS: tuple[Mutation, ...] = (remove, cut, replace, rename, exchange, link, add, edit, reindex, wrap)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of one shape: in one file, in two shards, in three, and in a file beside older shards."""
    folder = tmp_path_factory.mktemp("sources")
    made = [write_source(folder / f"s{n}", "dream", layers=1, width=64, seed=n, shards=n) for n in (1, 2, 3)]
    write_source(folder / "both", "dream", layers=1, width=64, seed=4, shards=2)
    return [*made, write_source(folder / "both", "dream", layers=1, width=64, seed=5)]


def mutant(directory: Path, sources: list[Path], number: int) -> Path:
    """The mutant with this number; mutations that do not apply change nothing."""
    rng = random.Random(number)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(rng.choice(sources), directory)
    for change in rng.choices(MUTATIONS, k=rng.randint(1, 3)):
        try:
            change(directory, rng.choice(sources), rng)
        except (OSError, ValueError, IndexError, AttributeError, TypeError, KeyError, safetensors.SafetensorError):
            continue
    return directory


def intended(directory: Path) -> dict[str, torch.Tensor]:
    """The weights that transformers would load; none may be outside the directory."""
    names = [SINGLE]
    if not (directory / SINGLE).is_file():
        index = directory / INDEX
        whole = [path.name for path in directory.glob("model-*-of-*.safetensors")]
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else whole
    weights: dict[str, torch.Tensor] = {}
    for path in (directory / name for name in names):
        assert path.resolve().is_relative_to(directory.resolve()), path
        weights |= safetensors.torch.load_file(path)
    return {name: tensor for name, tensor in weights.items() if "inv_freq" not in name}


@fuzz(short=70, long=4_000)
def test_mutated_directories(mutants: int, sources: list[Path], tally: Tally, tmp_path: Path) -> None:
    """Fails if a mutant raises another error than this package's, or is read with other weights than its own."""
    for number in range(mutants):
        directory = mutant(tmp_path / "model", sources, number)
        lines = tally.attempt(f"mutant {number}", partial(heard, directory))
        if lines is None:
            continue
        checkpoint, weights = Checkpoint.open(directory), intended(directory)
        assert checkpoint.tensors.keys() == weights.keys(), number
        for name, entry in checkpoint.tensors.items():
            data = entry.file.read_bytes()[entry.offset : entry.offset + entry.length]
            assert data == weights[name].view(torch.uint8).numpy().tobytes(), (number, name)
        raw = json.loads((directory / CONFIG).read_text())
        assert checkpoint.config.mask_token_id == raw["mask_token_id"] < 128, number
        if tally.accepted % 300 == 299:
            assert_same_text(directory, weights, tmp_path / "out", number)
    assert tally.accepted and tally.refused


def assert_same_text(directory: Path, weights: dict[str, torch.Tensor], out: Path, number: int) -> None:
    """Assert that a bundle of the directory writes the same text as one of the intended weights alone."""
    plain = out.parent / "plain"
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(directory, plain, ignore=shutil.ignore_patterns("*.safetensors*"))
    safetensors.torch.save_file(weights, plain / SINGLE)
    texts = []
    for source in (directory, plain):
        try:
            bundle = export(source, out)
        except DpadError:
            assert source is directory, number
            return
        with dpad.load(bundle.directory) as model:
            texts.append(model.generate([5, 6, 7], gen_length=32).canvas.tolist())
    assert texts[0] == texts[1], number
