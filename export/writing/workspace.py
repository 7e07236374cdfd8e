"""`workspace`: a temporary folder to build something in, which is removed even after its process was killed.

    with workspace(Path("bundles"), ".tiny.stage-") as folder:
        ...  # build below folder; what is still there at the end is removed

Its name is random, and the process holds a lock on a file in it. The kernel releases the lock when the process ends,
however that happens. The lock is seen by every process on the file system, including those in other containers and,
over NFS 4, on other machines, where process ids mean nothing. A process that can take the lock therefore knows that
the folder is abandoned, and removes it.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "dpad.lock"  # a folder without this file is not a workspace, whatever its name
_DRAWN = "[0-9a-f]{16}"
_LONGEST = 255 - 16  # bytes of a file's name, without the token

Rescue = Callable[[Path], object]


@contextmanager
def workspace(parent: Path, prefix: str, rescue: Rescue | None = None) -> Iterator[Path]:
    """A new folder in `parent` whose name begins with `prefix`; raises `OSError` if it cannot be made.

    Workspaces with that prefix whose process has ended are removed first. Before a workspace is removed, this one
    included, `rescue` is called with it to move out what must not be lost.
    """
    prefix = shorten(prefix, _LONGEST)
    _remove_left(parent, prefix, rescue)
    folder = parent / (prefix + secrets.token_hex(8))
    folder.mkdir()
    try:
        lock = _lock(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        yield folder
    finally:
        _remove(folder, lock, rescue)


def shorten(name: str, size: int) -> str:
    """A file's name cut to at most `size` bytes."""
    return os.fsdecode(os.fsencode(name)[:size])


def _lock(folder: Path) -> int:
    """Make the lock file of a new workspace; it gets its name after it is locked."""
    lock = os.open(folder / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with suppress(OSError):  # without locks in the file system no process can take it, and nothing is removed
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(folder / f"{_LOCK}.new", folder / _LOCK)
    return lock


def _remove_left(parent: Path, prefix: str, rescue: Rescue | None) -> None:
    """Remove the workspaces of processes that have ended; errors are ignored."""
    ours, left = re.compile(re.escape(prefix) + _DRAWN), []
    with suppress(OSError), os.scandir(parent) as entries:  # a folder may be writable but not readable
        left = [parent / e.name for e in entries if ours.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for folder in left:
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            if _taken(lock):
                _remove(folder, lock, rescue)
            else:
                os.close(lock)


def _taken(lock: int) -> bool:
    """Try to take the lock on `lock`; returns whether it is a lock file and no process held it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return stat.S_ISREG(os.fstat(lock).st_mode)  # a named pipe can be locked too


def _remove(folder: Path, lock: int, rescue: Rescue | None) -> None:
    """Remove a locked workspace, its lock file last, so that the next process finds what cannot be removed now."""
    try:
        if rescue is not None:
            rescue(folder)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink()
    finally:
        os.close(lock)  # must be closed before it is removed: NFS keeps open files
    with suppress(OSError):
        if len(os.listdir(folder)) == 1:
            (folder / _LOCK).unlink()
            folder.rmdir()
