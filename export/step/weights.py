"""Links, copies or converts a checkpoint's weights into a bundle, one shard at a time.

    shards = place_weights(checkpoint, stage / "float16", "float16", progress)

For the checkpoint's own dtype the shards are hard-linked, so that a bundle of a 16 GB model takes no additional space,
or copied if links are not possible. The same holds for float32, since the step can cast narrower weights exactly. For
another dtype the shards are rewritten, with one in memory at a time.
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

# For each dtype the unsigned integer of its width, and the exponent bits, which are all set only in NaN and infinity.
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
    """Raise `ExportError`, naming the tensor, if a weight is NaN or infinite; linked shards are not checked later.

    Also checks for matrices of zeros, which an unfinished download or copy leaves in a file. They are reported, and if
    more than half of the matrices are zero, `ExportError` is raised.
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
                        f"tensor {name} of the checkpoint contains NaN or infinity; the checkpoint is damaged"
                    )
                advance(piece.nbytes)
    matrices = sum(len(entry.shape) == 2 for entry in entries.values())
    if 2 * len(empty) > matrices > 1:
        raise ExportError(
            f"{shard}: {len(empty)} of its {matrices} matrices contain only zeros, the first is {empty[0]}: its "
            "download or copy is unfinished; fetch it again"
        )
    for name in empty:
        progress.say(
            f"tensor {name} of the checkpoint contains only zeros; if the model was not trained so, "
            f"{shard.name} is damaged"
        )


def check_tied(checkpoint: Checkpoint) -> None:
    """Raise `ExportError` if the head is tied but stored as a different tensor: it is unclear which one is right."""
    family = FAMILIES[checkpoint.architecture].Model
    if not checkpoint.config.tied or family.head not in checkpoint.tensors:
        return
    head, embedding = (_mapped(checkpoint.tensors[name], "uint8") for name in (family.head, family.embedding))
    for start in range(0, len(head), _CHUNK):
        if not np.array_equal(head[start : start + _CHUNK], embedding[start : start + _CHUNK]):
            raise ExportError(
                f"config.json says that the head is tied to {family.embedding}, but {family.head} differs from it; "
                "untie them in config.json, or remove the tensor"
            )


def _mapped(entry: TensorEntry, dtype: str) -> NDArray[Any]:
    """The bytes of a tensor as a memory-mapped array of one axis."""
    return np.memmap(entry.file, dtype, "r", entry.offset, shape=(entry.length // np.dtype(dtype).itemsize,))


def link_file(source: Path, target: Path) -> bool:
    """Hard-link the file that `source` resolves to (hub caches use symlinks); returns False if that fails."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def copy_file(source: Path, target: Path, advance: Callable[[int], None]) -> None:
    """Copy a file piece by piece, and report each size to `advance`; an I/O failure raises `ExportError`."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while piece := reader.read(_CHUNK):
                writer.write(piece)
                advance(len(piece))
        shutil.copymode(source, target)
    except OSError as error:
        raise ExportError(f"copying {source} to {target} failed: {error}") from error


def convert_shard(source: Path, target: Path, dtype: str, progress: Progress) -> None:
    """Rewrite one shard in `dtype`; raises `ExportError`, naming the tensor, for a value that `dtype` cannot hold."""
    tensors: dict[str, torch.Tensor] = {}
    with progress.task(f"convert {source.name} to {dtype}", len(read_header(source))) as advance:
        for name, tensor in read_tensors(source):
            tensors[name] = convert(name, tensor, getattr(torch, dtype))
            advance(1)
    write_shard(tensors, target)


def convert(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`; raises `ExportError`, naming the tensor, for a value that `dtype` cannot hold."""
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if not torch.isfinite(converted).all():
        kind, largest = str(dtype).removeprefix("torch."), tensor.abs().max().item()
        raise ExportError(f"tensor {name} reaches {largest:.4g}, which {kind} cannot hold; use bfloat16 or float32")
    return converted


def write_shard(tensors: dict[str, torch.Tensor], target: Path) -> None:
    """Call `save_shard`; a failure raises `ExportError`."""
    try:
        save_shard(tensors, target)
    except Exception as error:  # safetensors raises OSError and its own errors
        raise ExportError(f"writing {target} failed: {error}") from error


def save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file with the umask's permissions; the library's files can be read by their owner only."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)
