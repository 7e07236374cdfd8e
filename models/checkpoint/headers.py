"""Headers of safetensors files: every tensor by file, offset and length, without its data.

    tensors = read_headers([Path("model.safetensors")])
    tensors["model.norm.weight"].offset

Buffers that a model computes by itself (`is_recomputed`) are left out, as transformers leaves them out: they may lie
in a file, a bundle's linked ones too, and nobody counts, casts or reads them.
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
_CODES = {"I8": "int8", "U8": "uint8", "F8_E4M3": "float8_e4m3fn"}  # of packed weights, which bundles hold

# Tables of the rotation, of which config.json says the base; positions, and masks of older attention.
_RECOMPUTED = re.compile(
    r"(^|\.)((rotary_emb|rotary_embedding|rope)\.(\w*inv_freq|cos_cached|sin_cached)|position_ids|causal_mask|"
    r"masked_bias)$"
)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: byte `offset` from the start of `file`, `length` bytes."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


def is_recomputed(name: str) -> bool:
    """Whether a tensor is a buffer that older code saved, and every model computes anew."""
    return _RECOMPUTED.search(name) is not None


def read_headers(shards: Sequence[Path], packed: bool = False) -> dict[str, TensorEntry]:
    """Tensors of all shards by name; raises `CheckpointError` if two shards hold the same one."""
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in read_header(shard, packed).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name} is in both {tensors[name].file.name} and {shard.name}")
            tensors[name] = entry
    return tensors


def read_header(path: Path, packed: bool = False) -> dict[str, TensorEntry]:
    """Tensors of one safetensors file by name; raises `CheckpointError` on a bad or truncated file.

    Checkpoints hold floating-point tensors only, bundles also the codes of `packed` weights.
    """
    dtypes = DTYPES | (_CODES if packed else {})
    try:
        with safe_open(path, framework="np"):  # not "pt", which maps the whole file
            pass  # the library checks that offsets, shapes and file size agree
        start, header = _header(path)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; give yourself the right to") from None
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {_why(path, error)}") from None
    entries = {}
    for name, info in header.items():
        if is_recomputed(name):
            continue
        if info["dtype"] == "F64":
            raise CheckpointError(
                f"{path}: tensor {name} is in float64; convert with model.to(torch.bfloat16), and save it again"
            )
        if info["dtype"] not in dtypes:
            raise CheckpointError(
                f"{path}: tensor {name} has dtype {info['dtype']} (only {', '.join(dtypes)}); if the checkpoint is "
                "quantised, take the one that it was made from"
            )
        begin, end = info["data_offsets"]
        entries[name] = TensorEntry(path, start + begin, end - begin, dtypes[info["dtype"]], tuple(info["shape"]))
    return entries


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a file that `read_header` took, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if not is_recomputed(name):
                yield name, file.get_tensor(name)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and the header without its remarks."""
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
        pass  # what the library said is all that is known
    return f"{error}; copy or download it again"
