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

from dpad.models.checkpoint import Config, assumed

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

    Names are `model`, as it was given, that of its `directory` (where that is a step of a training, or a snapshot of
    the hub's cache, of the folders above) and config.json's `_name_or_path`. A length that config.json states is not
    questioned.
    """
    if not config.block_length or not (keys := [key for key in assumed(raw) if key != "mask_token_id"]):
        return ""
    for name in (model, *_folders(directory), raw.get("_name_or_path")):
        last = str(name).rstrip("/").rsplit("/", 1)[-1]
        for told in _BLOCK.findall(last):
            if int(told) != config.block_length:
                return (
                    f"{last!r} says blocks of {told}, and config.json, which names no {keys[0]}, means "
                    f'{config.block_length}: put "{keys[0]}": {told} into config.json, or {config.block_length} if '
                    "the name means something else"
                )
    return ""


def _folders(directory: Path | None) -> Iterator[str]:
    """The name of a directory, and those above it while they only count."""
    for folder in () if directory is None else (real := directory.resolve(), *real.parents):
        yield folder.name
        if not _STEP.fullmatch(folder.name):
            return
