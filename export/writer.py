"""`stage_bundle`: builds a bundle beside its destination and puts it in place in one step.

    with stage_bundle(Path("bundles/tiny")) as stage:
        ...  # write files below stage
        write_manifest(stage, manifest, progress)
    # bundles/tiny is now the new bundle; on an exception it is what it was before

An interrupted export leaves nothing half-made: the stage is a hidden sibling, removed on
failure and, after a kill, by the next export.
"""

import ctypes
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from dpad.export.digest import digest
from dpad.export.progress import Progress
from dpad.models.checkpoint import read_json
from dpad.runtime import manifest as manifests
from dpad.runtime.errors import CheckpointError, ExportError
from dpad.runtime.manifest import FileEntry, Manifest

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def stage_bundle(destination: Path) -> AbstractContextManager[Path]:
    """`stage_directory` for a bundle, which may take the place of another bundle."""
    return stage_directory(destination, replaces_bundle=True)


@contextmanager
def stage_directory(destination: Path, replaces_bundle: bool = False) -> Iterator[Path]:
    """A fresh directory that becomes `destination` when the block ends without an exception.

    Where `destination` is a link, what it leads to is replaced. Raises `ExportError` if that holds files, of a
    bundle where `replaces_bundle` excepted, or if writing fails.
    """
    destination = Path(os.path.realpath(destination))
    if destination.exists():
        _check_replaceable(destination, replaces_bundle)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(destination)
        stage = destination.parent / f".{destination.name}.stage-{os.getpid()}"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
    except OSError as error:
        raise ExportError(f"cannot write beside {destination}: {error}") from error
    try:
        yield stage
        _put_in_place(stage, destination)
    except OSError as error:
        raise ExportError(f"writing {destination} failed: {error}; it is unchanged") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_manifest(stage: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """List every file below `stage` with size and SHA-256, and write manifest.json, synced to disk."""
    paths = sorted(path for path in stage.rglob("*") if path.is_file() and path.name != manifests.FILE_NAME)
    total = sum(path.stat().st_size for path in paths)
    with progress.task("hash files", total) as advance:
        files = {
            path.relative_to(stage).as_posix(): FileEntry(path.stat().st_size, digest(path, advance)) for path in paths
        }
    manifest = replace(manifest, files=files)
    with (stage / manifests.FILE_NAME).open("w", encoding="utf-8") as file:
        json.dump(manifest.to_json(), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return manifest


def link_tree(source: Path, target: Path) -> None:
    """Populate `target` with the files of the bundle `source`, sharing storage where possible."""
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except OSError:
                shutil.copy2(path, copy)


def _check_replaceable(destination: Path, replaces_bundle: bool) -> None:
    """Raise `ExportError`, naming the first, if files would be lost with `destination` that are no bundle's."""
    if not destination.is_dir():
        raise ExportError(f"{destination} exists and is no directory; choose another, or move it away")
    listed = _files_of_bundle(destination) if replaces_bundle else set()
    wanted = "just a bundle" if replaces_bundle else "empty"
    for path in destination.rglob("*"):
        if not path.is_dir() and (name := path.relative_to(destination).as_posix()) not in listed:
            raise ExportError(
                f"{destination} exists and is not {wanted}: {name} would be lost; choose another directory, or move "
                "the file away"
            )


def _files_of_bundle(directory: Path) -> set[str]:
    """Names of all files of a bundle, of any schema; none where manifest.json is another program's, as of web apps."""
    try:
        data = read_json(directory / manifests.FILE_NAME)
    except CheckpointError:
        return set()
    files = data.get("files")
    ours = type(data.get("schema_version")) is int and isinstance(data.get("contract"), dict)
    return {manifests.FILE_NAME, *files} if ours and isinstance(files, dict) else set()


def _put_in_place(stage: Path, destination: Path) -> None:
    """Swap the two directories atomically where the kernel can, else by two renames."""
    if not destination.exists():
        os.rename(stage, destination)
    elif not _exchange(stage, destination):
        old = stage.with_name(stage.name + ".old")
        os.rename(destination, old)
        try:
            os.rename(stage, destination)
        except OSError:
            os.rename(old, destination)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Linux renameat2 with RENAME_EXCHANGE; False where libc or the file system lacks it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _remove_stale(destination: Path) -> None:
    """Remove stages of exports that were killed."""
    for stage in destination.parent.glob(f".{destination.name}.stage-*"):
        pid = stage.name.rsplit("-", 1)[1].removesuffix(".old")
        if not (pid.isdigit() and _alive(int(pid))):
            shutil.rmtree(stage, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
