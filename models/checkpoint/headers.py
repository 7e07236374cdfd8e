"""Reads headers of safetensors files: file, offset and length of every tensor, without its data.

    tensors = read_headers([Path("model.safetensors")])
    tensors["model.norm.weight"].offset

Buffers that a model computes itself (`is_recomputed`) are ignored, as in transformers: a file, and a bundle's link to
it, may contain them, but they are not counted, cast or read.
"""

import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dpad.models.checkpoint.damage import damage
from dpad.runtime.errors import CheckpointError

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {"I8": "int8", "U8": "uint8", "F8_E4M3": "float8_e4m3fn"}  # dtypes of packed weights, only in bundles

# Tables of the rotation, whose base is in config.json; position ids; masks of older attention code.
_RECOMPUTED = re.compile(
    r"(^|\.)((rotary_emb|rotary_embedding|rope)\.(\w*inv_freq|cos_cached|sin_cached)|position_ids|causal_mask|"
    r"masked_bias)$"
)


@dataclass(frozen=True)
class TensorEntry:
    """The place of one tensor: `length` bytes at byte `offset` from the start of `file`."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def is_recomputed(name: str) -> bool:
    """Whether a tensor is a buffer that older code saved and that every model computes itself."""
    return _RECOMPUTED.search(name) is not None


def read_headers(shards: Sequence[Path], packed: bool = False) -> dict[str, TensorEntry]:
    """The tensors of all shards by name; raises `CheckpointError` if two shards hold the same tensor."""
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in read_header(shard, packed).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name} is in both {tensors[name].file.name} and {shard.name}")
            tensors[name] = entry
    return tensors


def read_header(path: Path, packed: bool = False) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file by name; raises `CheckpointError` on a bad or truncated file.

    Only floating-point dtypes are accepted; with `packed`, for bundles, also those of packed weights' codes.
    """
    dtypes = DTYPES | (_CODES if packed else {})
    try:
        with safe_open(path, framework="np"):  # not "pt", which maps the whole file
            pass  # the library checks that offsets, shapes and file size agree
        start, header = _header(path)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; change its permissions") from None
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {_why(path, error)}") from None
    entries = {}
    for name, info in header.items():
        if is_recomputed(name):
            continue
        if info["dtype"] == "F64":
            raise CheckpointError(
                f"{path}: tensor {name} is in float64; convert it with model.to(torch.bfloat16), and save it again"
            )
        if info["dtype"] not in dtypes:
            raise CheckpointError(
                f"{path}: tensor {name} has dtype {info['dtype']} (only {', '.join(dtypes)}); if the checkpoint is "
                "quantised, use the one that it was made from"
            )
        begin, end = info["data_offsets"]
        entries[name] = TensorEntry(path, start + begin, end - begin, dtypes[info["dtype"]], tuple(info["shape"]))
    return entries


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, memory-mapped, of a file that `read_header` accepts."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if not is_recomputed(name):
                yield name, file.get_tensor(name)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """The offset of the data, and the header without `__metadata__`."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return 8 + size, header


def _why(path: Path, error: Exception) -> str:
    """What is wrong with the file, and the way out."""
    if told := damage(path):
        return told
    try:
        here = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(80)
        if head.isascii() and head.decode().isprintable():
            return f"it is text, such as a server's message, and begins with {head.decode()!r}; download it again"
        (size,) = struct.unpack("<Q", head[:8])
        if 2 <= size <= 100_000_000 and here >= 8 + size:  # the library's own limit
            start, header = _header(path)
            whole = start + max(info["data_offsets"][1] for info in header.values())
            if here < whole:
                return f"{here} of its {whole} bytes are there; copy or download it again"
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error):
        pass  # the library's message is the only explanation
    return f"{error}; copy or download it again"
