"""`remove` deletes a folder that an untrusted program has filled, without following its links.

    said = remove(folder)       # "", or what is left and why

Folders may be nested deeper than the longest path, have no permissions, or have names in no encoding; links may lead
anywhere. So no entry is opened by its path: each folder is opened relative to its open parent. Nested folders are first
moved to the top folder, so that depth does not matter.
"""

import os
import secrets
import stat
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROUNDS = 3  # attempts, because new files may appear meanwhile


def remove(folder: Path) -> str:
    """Remove `folder` and its contents; returns "", or one line about what could not be removed. Raises nothing."""
    try:
        top = _open(None, os.fspath(folder))
    except OSError as error:
        return f"{folder} cannot be opened ({error.strerror})"
    said = ""
    try:
        for _ in range(_ROUNDS):
            try:
                said = _empty(top)
                os.rmdir(folder)
                return ""
            except OSError as error:
                said = said or str(error.strerror)
    finally:
        os.close(top)
    return f"{folder} could not be removed ({said}); remove it by hand"


def _empty(top: int) -> str:
    """Remove the contents of the folder `top`; returns "", or the last error if something is left."""
    said, serial, mark = "", 0, secrets.token_hex(8)
    left = os.listdir(top)
    while left:
        name = left.pop()
        try:
            if not _is_folder(top, name):
                os.unlink(name, dir_fd=top)
                continue
            inner = _open(top, name)
        except OSError as error:
            said = str(error.strerror)
            continue
        try:
            for child in os.listdir(inner):
                try:
                    if not _is_folder(inner, child):
                        os.unlink(child, dir_fd=inner)
                        continue
                    os.close(_open(inner, child))  # gives back its permissions, without which it cannot be moved
                    serial += 1
                    moved = f".{mark}-{serial}"
                    os.rename(child, moved, src_dir_fd=inner, dst_dir_fd=top)
                    left.append(moved)
                except OSError as error:
                    said = str(error.strerror)
            os.rmdir(name, dir_fd=top)
        except OSError as error:
            said = str(error.strerror)
        finally:
            os.close(inner)
    return said


def _is_folder(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _open(parent: int | None, name: str) -> int:
    """Open a folder for reading, and give it back its permissions; never follows a link."""
    handle = os.open(name, _HANDLE, dir_fd=parent)
    try:
        if (os.fstat(handle).st_mode & stat.S_IRWXU) != stat.S_IRWXU:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)
        return os.open(".", _FOLDER, dir_fd=handle)
    finally:
        os.close(handle)
