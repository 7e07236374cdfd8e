"""Puts a checkpoint's weights into a bundle: linked, copied or converted, one shard at a time.

    shards = place_weights(checkpoint, stage / "float16", "float16", progress)

Where the dtype is the checkpoint's own the shards are hard-linked, so that a bundle of a 16 GB model costs no space;
where that is impossible they are copied. So they are for float32, which holds every value of the narrower dtypes: the
step casts them. Another dtype rewrites them, holding one shard in memory.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dpad.export.progress import Progress
from dpad.models.checkpoint.checkpoint import FAMILIES, Checkpoint
from dpad.models.checkpoint.headers import TensorEntry, read_header, read_tensors
from dpad.runtime.errors import ExportError

_CHUNK = 4 << 20

# Unsigned integers as wide as the dtype, and the bits that are all set in NaN and infinity only.
_EXPONENTS = {"float32": ("uint32", 0x7F800000), "float16": ("uint16", 0x7C00), "bfloat16": ("uint16", 0x7F80)}


def place_weights(
    checkpoint: Checkpoint, folder: Path, dtype: str, progress: Progress, *, link: bool = True
) -> list[Path]:
    """Write the shards of `checkpoint` into `folder` in `dtype`; returns the new files in order."""
    folder.mkdir(parents=True, exist_ok=True)
    placed = []
    for shard in checkpoint.shards:
        target = folder / shard.name
        if dtype not in (checkpoint.dtype, "float32"):
            convert_shard(shard, target, dtype, progress)
        elif not link or not link_file(shard, target):
            with progress.task(f"copy {shard.name}", shard.stat().st_size) as advance:
                copy_file(shard, target, advance)
        placed.append(target)
    return placed


def check_finite(shard: Path, progress: Progress) -> None:
    """Raise `ExportError`, naming the tensor, if a weight is NaN or infinite: linked ones are not looked at again.

    A matrix of zeros is said: so look the parts of a file that a download or a copy has not reached. Where most are,
    the file is refused.
    """
    entries = read_header(shard)
    empty = []
    with progress.task(f"check the values of {shard.name}", shard.stat().st_size) as advance:
        for name, entry in entries.items():
            bits, exponent = _EXPONENTS[entry.dtype]
            words = _mapped(entry, bits)
            if len(entry.shape) == 2 and not any(words[i : i + _CHUNK].any() for i in range(0, len(words), _CHUNK)):
                empty.append(name)
            for start in range(0, len(words), _CHUNK):
                piece = words[start : start + _CHUNK]
                if ((piece & exponent) == exponent).any():
                    raise ExportError(
                        f"tensor {name} of the checkpoint holds NaN or infinity; the checkpoint is broken"
                    )
                advance(piece.nbytes)
    matrices = sum(len(entry.shape) == 2 for entry in entries.values())
    if 2 * len(empty) > matrices > 1:
        raise ExportError(
            f"{shard}: {len(empty)} of its {matrices} matrices hold nothing but zeros, the first is {empty[0]}: its "
            "download or copy is unfinished; fetch it again"
        )
    for name in empty:
        progress.say(
            f"tensor {name} of the checkpoint holds nothing but zeros; if the model was not trained so, "
            f"{shard.name} is damaged"
        )


def check_tied(checkpoint: Checkpoint) -> None:
    """Raise `ExportError` if a tied head comes as a copy that is not the embedding: nobody knows which one counts."""
    family = FAMILIES[checkpoint.architecture].Model
    if not checkpoint.config.tied or family.head not in checkpoint.tensors:
        return
    head, embedding = (_mapped(checkpoint.tensors[name], "uint8") for name in (family.head, family.embedding))
    for start in range(0, len(head), _CHUNK):
        if not np.array_equal(head[start : start + _CHUNK], embedding[start : start + _CHUNK]):
            raise ExportError(
                f"config.json says that the head is tied to {family.embedding}, and {family.head} differs from it; "
                "say there that they are not tied, or remove the tensor"
            )


def _mapped(entry: TensorEntry, dtype: str) -> NDArray[Any]:
    """The bytes of a tensor as an array of one axis, read when they are used."""
    return np.memmap(entry.file, dtype, "r", entry.offset, shape=(entry.length // np.dtype(dtype).itemsize,))


def link_file(source: Path, target: Path) -> bool:
    """Hard-link `source` (resolved: hub caches use symlinks); False where the file system cannot."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def copy_file(source: Path, target: Path, advance: Callable[[int], None]) -> None:
    """Copy in pieces, reporting their sizes; an I/O failure is an `ExportError`."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while piece := reader.read(_CHUNK):
                writer.write(piece)
                advance(len(piece))
        shutil.copymode(source, target)
    except OSError as error:
        raise ExportError(f"copying {source} to {target} failed: {error}") from error


def convert_shard(source: Path, target: Path, dtype: str, progress: Progress) -> None:
    """Rewrite one shard in `dtype`; refuses, naming the tensor, values that it cannot hold."""
    tensors: dict[str, torch.Tensor] = {}
    with progress.task(f"convert {source.name} to {dtype}", len(read_header(source))) as advance:
        for name, tensor in read_tensors(source):
            tensors[name] = convert(name, tensor, getattr(torch, dtype))
            advance(1)
    write_shard(tensors, target)


def convert(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`; raises `ExportError`, naming it, if it holds a value that the dtype cannot."""
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if not torch.isfinite(converted).all():
        kind, largest = str(dtype).removeprefix("torch."), tensor.abs().max().item()
        raise ExportError(f"tensor {name} reaches {largest:.4g}, which {kind} cannot hold; use bfloat16 or float32")
    return converted


def write_shard(tensors: dict[str, torch.Tensor], target: Path) -> None:
    """`save_shard`, whose failure is an `ExportError`."""
    try:
        save_shard(tensors, target)
    except Exception as error:  # the library raises its own and OSError
        raise ExportError(f"writing {target} failed: {error}") from error


def save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file that whoever may read new files here can read; the library's are the owner's only."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)
