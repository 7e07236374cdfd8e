"""`workspace`: a folder of one's own to build something in, beside or in the directory where it will lie.

    with workspace(Path("bundles"), ".tiny.stage-") as folder:
        ...  # build below folder; what is still there at the end is removed

Its name is drawn at random, and a lock in it is held while the process lives. The kernel lets go of the lock when
the process ends, however that happens, and it counts for every process that sees the file system: those of other
containers, where process ids may be the same, and over NFS 4 those of other machines. So who can take the lock knows
that nobody works there any more, and removes what was left.
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

_LOCK = "dpad.lock"  # a folder without it is somebody else's, whatever its name
_DRAWN = "[0-9a-f]{16}"
_LONGEST = 255 - 16  # bytes of a file's name, without the token

Rescue = Callable[[Path], object]


@contextmanager
def workspace(parent: Path, prefix: str, rescue: Rescue | None = None) -> Iterator[Path]:
    """A new folder in `parent`, whose name begins with `prefix`; raises `OSError` if there can be none.

    Folders of that kind whose process has ended are removed first. `rescue` is called with each of them, and with
    this one at its end, and takes out what must not be lost.
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
    """At most `size` bytes of a file's name."""
    return os.fsdecode(os.fsencode(name)[:size])


def _lock(folder: Path) -> int:
    """Make the lock file of a new workspace; nobody sees it before it is locked."""
    lock = os.open(folder / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with suppress(OSError):  # on a file system without locks nobody can take it, and nothing is removed
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(folder / f"{_LOCK}.new", folder / _LOCK)
    return lock


def _remove_left(parent: Path, prefix: str, rescue: Rescue | None) -> None:
    """Remove the workspaces of processes that have ended; everything else stays, and stops nobody."""
    ours, left = re.compile(re.escape(prefix) + _DRAWN), []
    with suppress(OSError), os.scandir(parent) as entries:  # a folder may be writable and not readable
        left = [parent / e.name for e in entries if ours.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for folder in left:
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            if _taken(lock):
                _remove(folder, lock, rescue)
            else:
                os.close(lock)


def _taken(lock: int) -> bool:
    """Whether `lock` is a lock file that nobody held until now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return stat.S_ISREG(os.fstat(lock).st_mode)  # a named pipe can be locked too


def _remove(folder: Path, lock: int, rescue: Rescue | None) -> None:
    """Remove a workspace that is locked, the lock last: what cannot be removed now is found by the next one."""
    try:
        if rescue is not None:
            rescue(folder)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink()
    finally:
        os.close(lock)  # before it is removed: over NFS an open file stays
    with suppress(OSError):
        if len(os.listdir(folder)) == 1:
            (folder / _LOCK).unlink()
            folder.rmdir()
