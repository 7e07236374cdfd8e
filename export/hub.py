"""Resolves MODEL to a checkpoint directory: a name, a hub id or a local path.

    resolve("tiny"), resolve("llada"), resolve("GSAI-ML/LLaDA-1.5"), resolve("./checkpoint")
    read_config("llada")        # its config.json alone, where no weights are needed

The local hub cache is tried first. Then the files are downloaded: config, safetensors, tokenizer and presets, never
code. If that fails too, the error names the command to run on a machine with a connection.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dpad.export.forecast.layouts import LAYOUTS
from dpad.models.checkpoint.checkpoint import read_config as read_config_of
from dpad.models.checkpoint.folder import CONFIG, FILES, check_folder
from dpad.models.checkpoint.foreign import ADAPTER
from dpad.models.checkpoint.shards import find_shards
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FILE_NAME
from dpad.runtime.errors import CheckpointError

HUB_IDS = {
    "llada": "GSAI-ML/LLaDA-8B-Instruct",
    "llada-base": "GSAI-ML/LLaDA-8B-Base",
    "llada-1.5": "GSAI-ML/LLaDA-1.5",
    "dream": "Dream-org/Dream-v0-Instruct-7B",
    "dream-base": "Dream-org/Dream-v0-Base-7B",
    "dream-coder": "Dream-org/Dream-Coder-v0-Instruct-7B",
    "dream-coder-base": "Dream-org/Dream-Coder-v0-Base-7B",
    "diffucoder": "apple/DiffuCoder-7B-cpGRPO",
    "diffucoder-instruct": "apple/DiffuCoder-7B-Instruct",
    "diffucoder-base": "apple/DiffuCoder-7B-Base",
    "sdar-1.7b": "JetLM/SDAR-1.7B-Chat",
    "sdar-4b": "JetLM/SDAR-4B-Chat",
    "sdar-8b": "JetLM/SDAR-8B-Chat",
    "fast-dllm-1.5b": "Efficient-Large-Model/Fast_dLLM_v2_1.5B",
    "fast-dllm-7b": "Efficient-Large-Model/Fast_dLLM_v2_7B",
}
EMBEDDED = ("tiny", "tiny-dream")


@dataclass(frozen=True)
class Source:
    """A resolved model. `embedded` checkpoints are part of this package and are never linked to."""

    name: str
    label: str
    directory: Path
    embedded: bool = False


def resolve(model: str, weights: bool = True) -> Source:
    """Find or download `model`; without `weights`, only its config.json. Raises `CheckpointError` with the way out."""
    if model in EMBEDDED:
        return Source(model, model, Path(str(resources.files("dpad.models") / model)), embedded=True)
    path = Path(model)
    if model and os.path.isdir(path):
        return Source(path.resolve().name, str(path), path)
    hub_id = HUB_IDS.get(model, model)
    if hub_id.count("/") != 1 or model.startswith((".", "/", "~")):
        names = ", ".join([*EMBEDDED, *HUB_IDS])
        raise CheckpointError(f"{model!r} is neither a directory, nor a hub id (owner/name), nor one of {names}")
    return Source(model.replace("/", "--"), hub_id, _snapshot(hub_id, weights))


def published_id(source: Source, config: Mapping[str, Any]) -> str:
    """The hub id of the published checkpoint that `source` is, or else its label.

    A local directory has no id. Its name, or `_name_or_path` in `config` (its config.json), is compared with the short
    names in `HUB_IDS` and with the last parts of the ids.
    """
    known = {hub_id.rsplit("/", 1)[1].lower(): hub_id for hub_id in HUB_IDS.values()} | HUB_IDS
    for told in (source.label, source.directory.resolve().name, config.get("_name_or_path")):
        name = str(told).rstrip("/").rsplit("/", 1)[-1].lower()
        if name in known:
            return known[name]
    return source.label


def read_config(model: str) -> dict[str, Any]:
    """The config.json of `model`, which may also be the directory of a bundle; no weights are fetched.

    Models in `LAYOUTS` need no network. Raises `CheckpointError` as `resolve` does.
    """
    if os.path.isfile(bundle := Path(model) / FILE_NAME):
        return dict(Bundle.open(bundle.parent, hashes=False).manifest.model_config)
    if not os.path.isdir(model) and (name := model.removesuffix("-base")) in LAYOUTS:
        return dict(LAYOUTS[name].config)
    directory = resolve(model, weights=False).directory
    check_folder(directory, (CONFIG, ADAPTER))
    return read_config_of(directory)


def _snapshot(hub_id: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    files = list(FILES) if weights else [CONFIG]
    try:
        found = Path(snapshot_download(hub_id, allow_patterns=files, local_files_only=True))
        if _is_whole(found, weights):
            return found
    except Exception:  # noqa: S110 - not in the cache: try the network
        pass
    try:
        return Path(snapshot_download(hub_id, allow_patterns=files))
    except Exception as error:
        raise CheckpointError(
            f"{hub_id} is not in the local hub cache and cannot be downloaded here "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}).\n"
            f"On a machine with a connection run:\n"
            f"    hf download {hub_id} --local-dir {hub_id.split('/')[1]}\n"
            f"copy the directory here, and pass its path as MODEL."
        ) from error


def _is_whole(directory: Path, weights: bool) -> bool:
    """Whether a cached snapshot is complete: another program may have fetched only some of its files."""
    try:
        if weights:
            find_shards(directory)
        return (directory / CONFIG).is_file()
    except CheckpointError:
        return False
