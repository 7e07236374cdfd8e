"""`check_folder`: checks that every file that an export reads belongs to the checkpoint directory.

    check_folder(Path("LLaDA-8B-Instruct"))         # raises CheckpointError, naming the file

A directory may be untrusted, and the target of a link in it would end up in a bundle. So links are followed only within
the directory and, in the hub's cache, to the blobs of the same repository. The directory itself may be reached by
links.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from dpad.models.checkpoint.damage import TEXTS, damage
from dpad.runtime.errors import CheckpointError

CONFIG, INDEX, TEMPLATES = "config.json", ".safetensors.index.json", "additional_chat_templates"

# The files of a checkpoint: no others are downloaded or read.
FILES = (
    CONFIG,
    "generation_config.json",
    "presets.json",
    "adapter_config.json",
    "*.safetensors",
    f"*{INDEX}",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    f"{TEMPLATES}/*.jinja",
)


def check_folder(directory: Path, patterns: tuple[str, ...] = FILES) -> None:
    """Raise `CheckpointError` for a file of `patterns` that is a broken link, a link out of the folder or a pointer."""
    roots = _roots(directory)
    for name in _members(directory, patterns):
        path = directory / name
        _check_link(path, roots)
        unread = name.endswith(INDEX) or path.name.startswith(".")  # an index may be stale
        if path.suffix in (".json", *TEXTS) and not unread and (told := damage(path)):
            raise CheckpointError(f"{path} cannot be read: {told}")


def listing(directory: Path) -> list[str]:
    """The sorted names in `directory`; raises `CheckpointError` if that is not a directory or cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{directory} cannot be read as a checkpoint directory: {why}") from None


def _members(directory: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    names = listing(directory)
    if TEMPLATES in names and os.path.isdir(directory / TEMPLATES):
        names += [f"{TEMPLATES}/{name}" for name in listing(directory / TEMPLATES)]
    return (name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _roots(directory: Path) -> list[Path]:
    """The folders to which links may lead: the directory and, for a snapshot in the hub's cache, its blobs."""
    real = Path(os.path.realpath(directory))
    caches = [
        folder.parent / "blobs"
        for folder in real.parents
        if folder.name == "snapshots" and folder.parent.name.startswith("models--")
    ]
    return [real, *caches]


def _check_link(path: Path, roots: list[Path]) -> None:
    real = Path(os.path.realpath(path))
    if not os.path.exists(real):
        told = f" to {os.readlink(path)}" if path.is_symlink() else ""
        raise CheckpointError(
            f"{path} is a broken link{told}: it was copied without its target, or a download is unfinished; copy the "
            "original with `cp -rL`, or download it again"
        )
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{path} leads out of the checkpoint, to {real}, and is not followed; put the file itself there, as "
            "`cp -rL` does"
        )
