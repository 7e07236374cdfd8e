"""`find_weights`: finds the files with a checkpoint's weights, and explains what is wrong if there are none.

    weights = find_weights(Path("LLaDA-8B-Instruct"))
    weights.shards, weights.notes           # the files in order, and notes for the user

The choice is that of transformers: model.safetensors has priority over an index and its shards, even if it is older.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dpad.models.checkpoint.folder import listing
from dpad.models.checkpoint.foreign import UNFINISHED, foreign_contents, unfinished
from dpad.models.fields import read_json
from dpad.runtime.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Weights:
    """The safetensors files that are used, in order, and notes about those that are not."""

    shards: tuple[Path, ...]
    notes: tuple[str, ...]


def find_shards(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order; raises `CheckpointError` if one is missing."""
    return list(find_weights(directory).shards)


def find_weights(directory: Path) -> Weights:
    """The files that transformers would load; if there are none, `CheckpointError` says what is there instead."""
    here = [name for name in listing(directory) if os.path.isfile(directory / name)]
    notes = []
    if SINGLE in here:
        names = [SINGLE]
        if INDEX in here:
            notes.append(
                f"{SINGLE} is used, as in transformers, and the shards that {INDEX} names are not read; remove what is "
                "older"
            )
    elif INDEX in here:
        names = _indexed(directory, here)
    else:
        names = _whole_set(directory, here)
        notes.append(f"{INDEX} is missing, but all {len(names)} shards are there: they are used")
    for name in names:
        if kind := next((kind for kind in UNFINISHED if f"{name}{kind}" in here and kind == ".aria2"), ""):
            raise CheckpointError(f"{directory / name} is an unfinished download: {name}{kind} is there; finish it")
    unread = [name for name in here if name.endswith(".safetensors") and name[0] != "." and name not in names]
    if unread and not notes:
        more = f", nor {len(unread) - 1} more" if len(unread) > 1 else ""
        notes.append(f"{unread[0]} is not read{more}: {names[0]} {'is' if len(names) == 1 else 'and the like are'}")
    return Weights(tuple(directory / name for name in names), tuple(notes))


def _indexed(directory: Path, here: list[str]) -> list[str]:
    """Names of the shards in the index; raises `CheckpointError` if one is missing."""
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; fetch or save it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a plain file name")
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: shard {name!r} is not safetensors; convert the checkpoint to safetensors")
    if missing := [name for name in names if name not in here]:
        raise CheckpointError(f"{directory / missing[0]} is missing, {_why_missing(directory, here, names, missing)}")
    return names


def _why_missing(directory: Path, here: list[str], names: list[str], missing: list[str]) -> str:
    told = f"and {INDEX} names it ({len(names) - len(missing)} of {len(names)} shards are there)"
    if found := unfinished(directory, missing[0]):
        return f"{told}; {found}"
    others = [name for name in here if _SHARD.fullmatch(name) and name not in names]
    stale = f", or save it again: {others[0]} is not in this index, which may be older" if others else ""
    return f"{told}: download it again{stale}"


def _whole_set(directory: Path, here: list[str]) -> list[str]:
    """The only complete set of shards in a directory without an index; raises `CheckpointError` if there is none."""
    sets: dict[str, list[str]] = {}
    for name in here:
        if match := _SHARD.fullmatch(name):
            sets.setdefault(match[2], []).append(name)
    wanted = {
        count: [f"model-{i + 1:05}-of-{count}.safetensors" for i in range(min(int(count), 10**4))] for count in sets
    }
    if len(sets) == 1 and all(names == wanted[count] for count, names in sets.items()):
        return sets.popitem()[1]
    if sets:
        count, names = sets.popitem()
        lacking = next((name for name in wanted[count] if name not in names), None)
        raise CheckpointError(
            f"{directory / INDEX} is missing, and so is {lacking} ({len(names)} of {int(count)} shards are there): "
            f"{unfinished(directory, lacking) or 'download them again'}"
            if lacking and not sets
            else f"{directory / INDEX} is missing, and there are shards of several checkpoints: fetch or save it again"
        )
    raise CheckpointError(f"{directory / SINGLE} is missing: {foreign_contents(directory)}")
