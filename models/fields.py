"""Typed reading of config.json: a value of the wrong type or size raises `CheckpointError` and is never used.

    layers = integer(raw, "n_layers", high=1024)
    theta = number(raw, "rope_theta")

`integer` takes several keys, for values where the authors' code falls back from one key to another.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpad.models.checkpoint.damage import damage
from dpad.runtime.bundle import files
from dpad.runtime.errors import CheckpointError

MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  # far above every width, vocabulary or context of a real model
BLOCKS = ("block_size", "block_length", "bd_size")  # keys of families and their trainers for the block length


def integer(raw: Mapping[str, Any], *keys: str, low: int = 1, high: int = MAX_SIZE) -> int:
    """The value of the first of `keys` that is there and not null: an integer in [low, high]."""
    key = next((key for key in keys if raw.get(key) is not None), keys[-1])
    value = _present(raw, key)
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"config.json: {key}={value!r} is not an integer between {low} and {high}")
    return value


def number(raw: Mapping[str, Any], key: str) -> float:
    """A finite number above 0."""
    value = _present(raw, key)
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"config.json: {key}={value!r} is not a finite number above 0")
    return float(value)


def token(raw: Mapping[str, Any], key: str) -> int:
    """A token id, or the first of a list of token ids."""
    return tokens(raw, key)[0]


def tokens(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The token ids under a key that holds one id or a list."""
    value = raw.get(key)
    told = value if isinstance(value, list) and value else [value]
    return tuple(integer({**raw, key: one} if key in raw else raw, key, low=0) for one in told)


def block(raw: Mapping[str, Any], key: str, default: int) -> int:
    """The block length in tokens, by default `default`; raises `CheckpointError` if another key in `BLOCKS` differs."""
    said = raw.get(key) is not None
    length = integer(raw, key) if said else default
    for other in BLOCKS:
        if raw.get(other) is not None and raw[other] != length:
            known = f"{key}={length}" if said else f"{key} is missing and {length} by default"
            raise CheckpointError(
                f"config.json: {other}={raw[other]!r}, but {known}; set {key} to the block length that the model was "
                f"trained with, and remove {other}"
            )
    return length


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `CheckpointError` naming the file."""
    try:
        data = files.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint directory?") from None
    except (OSError, ValueError) as error:
        told = damage(path) or f"{error}; repair it, or fetch it again"
        raise CheckpointError(f"{path} cannot be read as JSON: {told}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def rope_base(raw: Mapping[str, Any]) -> float:
    """`rope_theta`, which newer files hold in `rope_parameters`; rotations other than the default are refused."""
    bases = [raw]
    for key in ("rope_scaling", "rope_parameters"):
        given = raw.get(key)
        if given is None:
            continue
        plain = {"rope_type": "default", "type": "default"}
        if not isinstance(given, Mapping) or any(
            given[name] != plain.get(name) for name in given.keys() - {"rope_theta"}
        ):
            raise CheckpointError(f"config.json: {key}={given!r} is not supported (only rope_type 'default')")
        bases.append(given)
    said = {number(base, "rope_theta") for base in bases if base.get("rope_theta") is not None}
    if len(said) > 1:
        raise CheckpointError(f"config.json: rope_theta and rope_parameters differ: {sorted(said)}; remove one")
    return said.pop() if said else number(raw, "rope_theta")


def flag(raw: Mapping[str, Any], key: str) -> bool:
    """True or false; missing and null are false."""
    value = raw.get(key)
    if value is not None and type(value) is not bool:
        raise CheckpointError(f"config.json: {key}={value!r} is neither true nor false")
    return bool(value)


def filled(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`raw`, with `defaults` for keys that are missing or null."""
    return {**defaults, **{key: value for key, value in raw.items() if value is not None}}


def require(raw: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for a key of `only` that is there, is not null and has another value than given."""
    for key, value in only.items():
        given = raw.get(key)
        if given is not None and (type(given) is not type(value) or given != value):
            raise CheckpointError(f"config.json: {key}={given!r} is not supported (only {value!r})")


def _present(raw: Mapping[str, Any], key: str) -> Any:
    if key not in raw:
        raise CheckpointError(f"config.json: key {key!r} is missing")
    return raw[key]
