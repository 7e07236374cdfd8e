"""`write_checkpoint`: writes random weights in a published repository's layout, to measure sizes and times with.

    summary = write_checkpoint("llada", Path("random-llada"), layers=None, seed=0, progress=Progress())
    summary.shards, summary.size

Everything that reads a real checkpoint can read this one: it has config.json with the authors' keys, sharded bfloat16
safetensors with their index, and tokenizer files. Its config.json says that the weights are random; a bundle keeps that
in `model_config`, so that `dpad generate` can warn. The vocabulary is made up: all bytes, then pairs and triples of
bytes.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dpad.export.forecast.layouts import LAYOUTS, Layout
from dpad.export.progress import Progress
from dpad.export.step.weights import save_shard
from dpad.export.writing.writer import stage_directory
from dpad.models.checkpoint.checkpoint import meta_model, parse_config
from dpad.runtime.bundle.manifest import RANDOM_WEIGHTS
from dpad.runtime.errors import ExportError

_SHARD = 2_000_000_000  # bytes of a shard, which is held in memory as a whole


@dataclass(frozen=True)
class Summary:
    """What was written: the number of weights, the number of shards, and the bytes of all weights."""

    architecture: str
    layers: int
    weights: int
    shards: int
    size: int


def write_checkpoint(model: str, out: Path, layers: int | None, seed: int, progress: Progress) -> Summary:
    """Write a random checkpoint of `model` (a key of `LAYOUTS`) to the new directory `out`.

    Args:
        model: name of the layout.
        out: must not exist or be empty; it appears complete or not at all.
        layers: number of layers; None is the published number. Everything else keeps its size.
        seed: the same seed and layout give the same bytes; each layer's bytes do not depend on `layers`.
        progress: reports every shard.

    Raises:
        ExportError: `out` is in use, or the disk has no room.
    """
    layout = LAYOUTS[model]
    config = layout.config | ({} if layers is None else {layout.layers: layers}) | {RANDOM_WEIGHTS: seed}
    architecture, parsed = parse_config(config)
    state = meta_model(architecture, parsed).to(torch.bfloat16).state_dict()
    split = split_torch_state_dict_into_shards(state, max_shard_size=_SHARD)
    size = int(split.metadata["total_size"])
    with stage_directory(out) as stage:
        free = shutil.disk_usage(stage).free
        if free < size:
            raise ExportError(
                f"{out} would take {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; fewer --layers take less"
            )
        _write_json(stage / "config.json", config)
        _write_tokenizer(layout, stage)
        with progress.task(f"{size / 1e9:.1f} GB of random weights", size) as advance:
            for name, tensors in split.filename_to_tensors.items():
                advance(_write_shard(stage / name, {tensor: tuple(state[tensor].shape) for tensor in tensors}, seed))
        if split.is_sharded:
            index = {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename}
            _write_json(stage / "model.safetensors.index.json", index)
    weights = sum(tensor.numel() for tensor in state.values())
    return Summary(architecture, parsed.layers, weights, len(split.filename_to_tensors), size)


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> int:
    """Write one file of random tensors, all of them in memory at once; returns their size in bytes."""
    tensors = {name: random_tensor(name, shape, seed) for name, shape in shapes.items()}
    save_shard(tensors, path)
    return sum(tensor.nbytes for tensor in tensors.values())


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A bfloat16 tensor, a function of the arguments alone: weights scaled by fan-in, norms 1, biases small."""
    state = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7]))
    weight = torch.empty(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return weight.fill_(1.0) if name.endswith("weight") else weight.normal_(0, 0.02, generator=state)
    embeds = "wte" in name or "embed_tokens" in name
    return weight.normal_(0, 1.0 if embeds else shape[1] ** -0.5, generator=state)


def _write_tokenizer(layout: Layout, folder: Path) -> None:
    vocabulary, merges = _vocabulary(layout.words)
    special = {index: AddedToken(layout.special[index], special=True) for index in sorted(layout.special)}
    settings: dict[str, Any] = {
        "added_tokens_decoder": {str(index): token.__getstate__() for index, token in special.items()},
        **layout.named,
        "tokenizer_class": "Qwen2Tokenizer" if layout.parts else "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", settings)
    template = resources.files("dpad.models") / layout.template / "chat_template.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text("utf-8"), "utf-8")
    if layout.parts:
        _write_json(folder / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
        return
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(folder / "tokenizer.json"))


def _vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """`size` tokens and the merges that make them: every byte, then every token followed by every byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = list(letters), []
    for piece in pieces:  # the loop appends to this list
        for letter in letters[: size - len(pieces)]:
            merges.append((piece, letter))
            pieces.append(piece + letter)
        if len(pieces) == size:
            break
    return {piece: index for index, piece in enumerate(pieces)}, merges


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
