"""What is taken for keys that a config.json leaves out, and names that say otherwise.

    assumptions(raw)                        # lines for people
    contradiction(raw, config, path)        # "SDAR-4B-Chat-b64 says blocks of 64, ..." or ""

The authors of SDAR and Fast-dLLM v2 give the block length as an argument of their code, and checkpoints trained with
another one tell it by their name alone. With the wrong one a model writes worse text, and nothing fails.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpad.models.checkpoint.checkpoint import Config, assumed, read_json
from dpad.models.fields import BLOCKS
from dpad.models.presets import ENDS

# "-b64", "_block64", "-block-size-64"; not the "4B" of a size.
_BLOCK = re.compile(r"(?<![a-z0-9])(?:b|bd|bl|blk|block(?:[-_]?(?:size|length|len))?[-_]?)(\d{1,4})(?![a-z0-9.])", re.I)
_STEP = re.compile(r"(checkpoint|step|epoch)[-_]?\d+|snapshots|[0-9a-f]{40}|final|merged|hf", re.I)


def assumptions(raw: Mapping[str, Any]) -> list[str]:
    """One line for each key that config.json leaves out."""
    return [
        f"config.json names no {key}: {value} is assumed, as in the published checkpoints of the family; if the model "
        "was trained with another, put that there"
        for key, value in assumed(raw).items()
    ]


def contradiction(raw: Mapping[str, Any], config: Config, model: str, directory: Path | None = None) -> str:
    """The name that says another block length than is assumed, and the way out; empty if none does.

    Asked are generation_config.json in `directory`, and names: `model`, as it was given, that of `directory` (where
    that is a step of a training, or a snapshot of the hub's cache, of the folders above too) and config.json's
    `_name_or_path`. A length that config.json states is not questioned.
    """
    if not config.block_length or not (keys := [key for key in assumed(raw) if key != "mask_token_id"]):
        return ""
    told = read_json(path) if directory and (path := directory / ENDS).exists() else {}
    for key in BLOCKS:
        if told.get(key, config.block_length) not in (None, config.block_length):
            return _contradicts(f"{ENDS} says {key}={told[key]!r}", keys[0], config.block_length)
    for name in (model, *_folders(directory), raw.get("_name_or_path")):
        last = str(name).rstrip("/").rsplit("/", 1)[-1]
        for length in _BLOCK.findall(last):
            if int(length) != config.block_length:
                return _contradicts(f"{last!r} says blocks of {length}", keys[0], config.block_length)
    return ""


def _contradicts(said: str, key: str, assumed: int) -> str:
    return (
        f'{said}, and config.json, which names no {key}, means {assumed}: put "{key}" into config.json, with the block '
        "length that the model was trained with"
    )


def _folders(directory: Path | None) -> Iterator[str]:
    """The name of a directory, and those above it while they only count."""
    for folder in () if directory is None else (real := directory.resolve(), *real.parents):
        yield folder.name
        if not _STEP.fullmatch(folder.name):
            return
