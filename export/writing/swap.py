"""`put_in_place`: replaces a directory by a finished one, and deletes only those files of the old one that are listed.

    put_in_place(stage, destination, replaceable, check)    # both raise `ExportError` for what must stay

The directories are exchanged in one step if the kernel supports that. The old directory is examined after the exchange,
when other programs cannot reach it by its name any more, and only the files seen then are deleted, one by one.
"""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from warnings import warn

from dpad.export.writing.workspace import shorten
from dpad.runtime.bundle.manifest import FILE_NAME
from dpad.runtime.bundle.tree import walk
from dpad.runtime.errors import ExportError

Check = Callable[[Path], object]  # raises ExportError
Replaceable = Callable[[Path], list[str]]  # names that may be deleted with a directory; raises ExportError for others

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = "old"  # beside the stage: the directory that was at the destination
_LONGEST = 255 - 16  # bytes of a file's name before a suffix is added


def put_in_place(stage: Path, destination: Path, replaceable: Replaceable, check: Check) -> None:
    """Rename `stage` to `destination`, and remove the directory that was there.

    Raises `ExportError`, with the places of both directories, if the old one fails `check` or `replaceable`, if a
    rename fails, or if a file was added to the old one during the exchange. Warns if the old one has edited files,
    which stay.
    """
    old = stage.with_name(_OLD)
    try:
        if destination.exists():
            check(destination)
            replaceable(destination)
        _swap(stage, destination, old)
        names: list[str] = []
        if old.exists():
            check(old)
            names = replaceable(old)
    except (ExportError, OSError) as error:
        if old.exists():
            _swap(old, destination, stage)
        kept = _set_aside(stage, destination, "new")
        raise ExportError(f"{error}; {destination} is unchanged, and the new one is in {kept}") from error
    edited = sorted({name for name, _ in walk(old)} - set(names)) if old.exists() else []
    _discard(old, names)
    if (left := rescue(stage.parent, destination, replaceable)) and edited:
        warn(
            f"{destination} is the new one; files of the old one that were edited by hand are in {left}: {edited[0]}",
            stacklevel=2,
        )
    elif left:
        raise ExportError(f"{destination} is the new one; files that were added to the old one are in {left}")


def rescue(folder: Path, destination: Path, replaceable: Replaceable) -> Path | None:
    """Move the old directory out of a workspace if a process was killed during the exchange or files were added late.

    Returns its new path, or None if there is nothing to move.
    """
    old = folder / _OLD
    if not old.exists():
        return None
    if not destination.exists():  # the process was killed between two renames
        os.rename(old, destination)
        return destination
    try:
        replaceable(old)
    except ExportError:
        return _set_aside(old, destination, "old")
    return None


def _swap(new: Path, destination: Path, old: Path) -> None:
    """Rename `new` to `destination`, after renaming `destination`, if it exists, to `old`."""
    if not destination.exists():
        os.rename(new, destination)
        return
    os.rename(new, old)
    if _exchange(old, destination):
        return
    os.rename(old, new)
    os.rename(destination, old)
    try:
        os.rename(new, destination)
    except OSError:
        os.rename(old, destination)
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two directories with Linux's renameat2; returns False if libc or the file system lacks it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _discard(old: Path, names: list[str]) -> None:
    """Delete the files and folders `names` in `old`; other files stay, with their folders.

    `names` lists folders before their contents. The manifest is deleted last, so that after an interruption it still
    says what the other files are.
    """
    for name in (*(name for name in reversed(names) if name != FILE_NAME), FILE_NAME):
        path = old / name
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
    with suppress(OSError):
        old.rmdir()


def _set_aside(path: Path, destination: Path, word: str) -> Path:
    """Rename the directory `path` to a free name beside `destination`, and return the new path."""
    name, number = f"{shorten(destination.name, _LONGEST)}.{word}", 1
    while True:
        free = destination.with_name(name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            free.mkdir()  # reserves the name
            os.rename(path, free)
            return free
        number += 1
