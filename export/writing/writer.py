"""`stage_bundle`: builds a bundle beside its destination and puts it in place in one step.

    with stage_bundle(Path("bundles/tiny")) as stage:
        ...  # write files below stage
        write_manifest(stage, manifest, progress)
    # bundles/tiny is now the new bundle; on an exception it is what it was before

An interrupted export leaves no partial bundle: the stage is a hidden sibling folder, which is removed on failure or,
after a kill, by the next export. Files that other programs put into the destination meanwhile are not lost: the
destination is searched for them before and after the exchange. Texts of a bundle that were edited by hand are kept too.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from dpad.export.progress import Progress
from dpad.export.writing.digest import digests
from dpad.export.writing.swap import put_in_place, rescue
from dpad.export.writing.workspace import workspace
from dpad.runtime.bundle import manifest as manifests
from dpad.runtime.bundle.bundle import read_manifest
from dpad.runtime.bundle.companions import is_litter
from dpad.runtime.bundle.files import read_json
from dpad.runtime.bundle.manifest import FileEntry, Manifest
from dpad.runtime.bundle.tree import walk
from dpad.runtime.errors import BundleError, ExportError

Listing = Mapping[str, str | None]  # files of a directory, with the SHA-256 of those that have one

_TEXTS = (".json", ".jinja", ".txt")  # files that people edit
_TEXT_LIMIT = 64 << 20  # bytes


def stage_bundle(destination: Path, instead_of: Manifest | None = None) -> AbstractContextManager[Path]:
    """`stage_directory` for a bundle; it may replace any other bundle, or only `instead_of` if that is given."""

    def check(directory: Path) -> None:
        if instead_of is not None and _manifest_of(directory) != instead_of:
            raise ExportError(f"{destination} was replaced by another bundle meanwhile; run the command again for it")

    return stage_directory(destination, _files_of_bundle, check)


@contextmanager
def stage_directory(
    destination: Path,
    listed: Callable[[Path], Listing] = lambda directory: {},
    check: Callable[[Path], object] = lambda directory: None,
) -> Iterator[Path]:
    """A new directory that becomes `destination` when the block ends without an exception.

    If `destination` is a link, its target is replaced. `check` raises an error if the directory there must stay.
    `listed` returns the files of that directory that may be replaced, none by default. Raises `ExportError` if it holds
    other files, at the start or at the end, or if writing fails. If such files appear in between, the new directory is
    kept beside it.
    """
    destination = _resolved(destination)
    replaceable = partial(_replaceable, destination=destination, listed=listed)
    if destination.exists():
        _check_movable(destination)
        check(destination)
        replaceable(destination)
    with ExitStack() as opened:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            saved = partial(rescue, destination=destination, replaceable=replaceable)
            folder = opened.enter_context(workspace(destination.parent, f".{destination.name}.stage-", saved))
            stage = folder / "new"
            stage.mkdir()
        except OSError as error:
            raise ExportError(f"cannot write beside {destination}: {error}") from error
        try:
            yield stage
            put_in_place(stage, destination, replaceable, check)
        except OSError as error:
            raise ExportError(f"writing {destination} failed: {error}; it is unchanged") from error


def check_replaceable(destination: Path) -> None:
    """Raise `ExportError` if `stage_bundle` would refuse `destination`, as for a directory with other files."""
    destination = _resolved(destination)
    if destination.exists():
        _check_movable(destination)
        _replaceable(destination, destination, _files_of_bundle)


def write_manifest(stage: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Add every file below `stage`, with size and SHA-256, to the manifest, and write it to disk with fsync."""
    paths = sorted(path for path in stage.rglob("*") if path.is_file() and path != stage / manifests.FILE_NAME)
    sizes = [path.stat().st_size for path in paths]
    with progress.task("hash files", sum(sizes)) as advance:
        entries = map(FileEntry, sizes, digests(paths, advance))
    files = dict(zip((path.relative_to(stage).as_posix() for path in paths), entries))
    manifest = replace(manifest, files=files)
    with (stage / manifests.FILE_NAME).open("w", encoding="utf-8") as file:
        json.dump(manifest.to_json(), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return manifest


def link_tree(source: Path, target: Path, names: Iterable[str]) -> None:
    """Hard-link, or else copy, the files `names` of the bundle `source` into `target`."""
    for name in names:
        path, copy = source / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def _resolved(destination: Path) -> Path:
    try:
        return Path(os.path.realpath(destination))
    except ValueError as error:  # for example a name with a zero byte
        raise ExportError(f"{str(destination)!r} cannot name a directory: {error}") from error


def _check_movable(destination: Path) -> None:
    """Raise `ExportError` if `destination` exists and could not be replaced at the end of the export."""
    if not destination.is_dir():
        raise ExportError(f"{destination} exists and is not a directory; choose another path, or move it away")
    if destination.is_mount():
        raise ExportError(f"{destination} is a mount point, which cannot be replaced; choose a directory in it")
    if not os.access(destination, os.W_OK | os.X_OK):
        raise ExportError(f"{destination} exists and may not be written to; choose another directory")


def _replaceable(directory: Path, destination: Path, listed: Callable[[Path], Listing]) -> list[str]:
    """Names that may be deleted with `directory`, folders before their contents: all but texts edited by hand.

    Raises `ExportError`, naming the first, if it holds files that are not `listed`.
    """
    known = listed(directory)
    wanted = "just a bundle" if listed is _files_of_bundle else "empty"
    names = []
    if known and (directory / manifests.FILE_NAME).is_symlink():
        raise ExportError(
            f"{destination} is in a hub's cache, whose files are links; choose another directory, or remove it from "
            "the cache first"
        )
    try:
        for name, mode in walk(directory):
            if not stat.S_ISDIR(mode) and name not in known and not is_litter(name):
                raise ExportError(
                    f"{destination} exists and is not {wanted}: {name} would be lost; choose another directory, or "
                    "move the file away"
                )
            if name not in known or not _is_edited(directory / name, known[name]):
                names.append(name)
    except OSError as error:
        raise ExportError(f"{destination} cannot be searched: {error}; choose another directory") from error
    return names


def _files_of_bundle(directory: Path) -> Listing:
    """All files of a bundle of any schema; none if manifest.json is another program's, such as a web app's."""
    try:
        data = read_json(directory / manifests.FILE_NAME)
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict) or type(data.get("schema_version")) is not int:
        return {}
    files = data.get("files")
    if not isinstance(files, dict) or not isinstance(data.get("contract"), dict):
        return {}
    hashes = {name: told.get("sha256") if isinstance(told, dict) else None for name, told in files.items()}
    return {manifests.FILE_NAME: None, **hashes}


def _is_edited(path: Path, sha256: str | None) -> bool:
    """Whether a text file of a bundle differs from its exported version, so that somebody's work would be lost."""
    if sha256 is None or path.suffix not in _TEXTS or path.stat().st_size > _TEXT_LIMIT:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() != sha256


def _manifest_of(directory: Path) -> Manifest | None:
    try:
        return read_manifest(directory)
    except (BundleError, OSError):
        return None
