"""`put_in_place`: lets a finished directory take the place of another, of which nothing is lost that is not listed.

    put_in_place(stage, destination, replaceable, check)    # both raise `ExportError` for what must stay

The directories change places in one step where the kernel can do that. What was there is looked through where nobody
finds it by its name any more, and only what was seen is deleted, file by file.
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
Replaceable = Callable[[Path], list[str]]  # names of what may go with a directory; raises ExportError if it may not

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = "old"  # beside the stage: what was at the destination
_LONGEST = 255 - 16  # bytes of a file's name, without what is added


def put_in_place(stage: Path, destination: Path, replaceable: Replaceable, check: Check) -> None:
    """Let `stage` be `destination`, and remove what was there, if it passes `check` and is `replaceable`.

    Raises `ExportError`, saying where everything is, if that may not be, cannot be, or came too late for a file.
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
        raise ExportError(f"{error}; {destination} is as it was, and what was made lies in {kept}") from error
    edited = sorted({name for name, _ in walk(old)} - set(names)) if old.exists() else []
    _discard(old, names)
    if (left := rescue(stage.parent, destination, replaceable)) and edited:
        warn(
            f"{destination} is the new one; what was changed in the old one by hand lies in {left}: {edited[0]}",
            stacklevel=2,
        )
    elif left:
        raise ExportError(f"{destination} is the new one; files that were put into the old one lie in {left}")


def rescue(folder: Path, destination: Path, replaceable: Replaceable) -> Path | None:
    """Take out of a workspace what a killed process had moved into it, or what came too late to be seen.

    Returns where that is now, None if it is nothing.
    """
    old = folder / _OLD
    if not old.exists():
        return None
    if not destination.exists():  # killed between two renames
        os.rename(old, destination)
        return destination
    try:
        replaceable(old)
    except ExportError:
        return _set_aside(old, destination, "old")
    return None


def _swap(new: Path, destination: Path, old: Path) -> None:
    """Rename `new` to `destination`, and what is there, if anything, to `old`."""
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
    """Linux renameat2 with RENAME_EXCHANGE; False where libc or the file system lacks it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _discard(old: Path, names: list[str]) -> None:
    """Delete what of `names`, folders before their contents, lies in `old`; anything else stays, and its folders.

    The manifest goes last: it says what the rest is, if this is cut short.
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
    """Rename the directory `path` to a name beside `destination` that is free, and return that."""
    name, number = f"{shorten(destination.name, _LONGEST)}.{word}", 1
    while True:
        free = destination.with_name(name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            free.mkdir()  # nobody else takes the name now
            os.rename(path, free)
            return free
        number += 1
