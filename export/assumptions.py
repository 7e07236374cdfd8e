"""Defaults for keys that a config.json leaves out, and names that contradict these defaults.

    assumptions(raw)                        # lines for people
    contradiction(raw, config, path)        # "SDAR-4B-Chat-b64 says blocks of 64, ..." or ""

The authors of SDAR and Fast-dLLM v2 pass the block length as an argument of their code, so a checkpoint trained with
another one shows it only in its name. With a wrong block length a model writes worse text and raises no error.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpad.models.checkpoint.checkpoint import Config, assumed, read_json
from dpad.models.checkpoint.folder import CONFIG
from dpad.models.presets import ENDS

# "-b64", "_blk_8", "-bs16", "-blocklen=16", "-block-size-64", "-16block"; not the "4B" of a size.
_WORD = r"(?:b|bd|bl|bs|blk|blocks?(?:[-_]?(?:size|length|len))?)"
_BLOCK = re.compile(rf"(?<![a-z0-9]){_WORD}[-_=]?(\d{{1,4}})(?![a-z0-9.])", re.I)
_BEFORE = re.compile(r"(?<![a-z0-9.])(\d{1,4})[-_]?(?:blk|blocks?)(?![a-z])", re.I)
_LENGTHS = (4, 8, 16, 32, 64, 128)  # block lengths of training; other numbers in names count GPUs or runs
_KEY = re.compile(r"(?:^|_)block_?(?:size|len(?:gth)?)$|^bd_size$", re.I)
_ELSEWHERE = ("quantization_config", "quantization", "compression_config")  # "block" means a block of weights there
_STEP = re.compile(
    r"((global[-_]?)?(checkpoint|ckpt|step|epoch|iter)[-_]?\d+[-_]?)+|snapshots|[0-9a-f]{40}|final|merged|hf|outputs?|last|main|"
    r"best|latest|checkpoints?",
    re.I,
)


def assumptions(raw: Mapping[str, Any]) -> list[str]:
    """One line for each key that config.json leaves out."""
    return [
        f"config.json names no {key}: {value} is assumed, as in the published checkpoints of the family; if the model "
        "was trained with another, put that there"
        for key, value in assumed(raw).items()
    ]


def contradiction(raw: Mapping[str, Any], config: Config, model: str, directory: Path | None = None) -> str:
    """An error message if a file or a name states another block length than the assumed one, else an empty string.

    Read are config.json and generation_config.json in `directory`, under every usual key of a block length, and three
    names: `model` as it was given, the name of `directory`, and config.json's `_name_or_path`. Where `directory` is a
    training step, a training's output or a snapshot in the hub's cache, the folders above it are read too. A length
    that config.json states under the family's own key is accepted without a check.
    """
    if not config.block_length or not (keys := [key for key in assumed(raw) if key != "mask_token_id"]):
        return ""
    ends = read_json(path) if directory and (path := directory / ENDS).exists() else {}
    for file, told in ((CONFIG, raw), (ENDS, ends)):
        for key, length in _said(told):
            if length != config.block_length:
                return _contradicts(f"{file} says {key}={length}", keys[0], config.block_length)
    for name in (model, *_folders(directory), raw.get("_name_or_path")):
        last = str(name).rstrip("/").rsplit("/", 1)[-1]
        for length in map(int, (*_BLOCK.findall(last), *_BEFORE.findall(last))):
            if length in _LENGTHS and length != config.block_length:
                return _contradicts(f"{last!r} says blocks of {length}", keys[0], config.block_length)
    return ""


def _said(told: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, int]]:
    """(key, block length) for every key of a file that names a block length, down to one level of nesting."""
    for key, value in told.items():
        if isinstance(value, dict) and not within and key not in _ELSEWHERE:
            yield from _said(value, f"{key}.")
        elif value is not None and _KEY.search(key) and str(value).isdecimal():
            yield f"{within}{key}", int(value)


def _contradicts(said: str, key: str, assumed: int) -> str:
    return (
        f'{said}, and config.json, which names no {key}, means {assumed}: put "{key}" into config.json, with the block '
        "length that the model was trained with"
    )


def _folders(directory: Path | None) -> Iterator[str]:
    """The name of a directory, and those of its parents as long as the name below is generic ("checkpoint-500")."""
    for folder in () if directory is None else (real := directory.resolve(), *real.parents):
        yield folder.name
        if not _STEP.fullmatch(folder.name):
            return
