"""Paths that a candidate program may read: the interpreter, its packages and libraries, and no other files of the user.

paths = readable()          # folders and files, for Landlock
closed(paths)               # folders that other users may not enter -> the `paths` below them
"""

import os
import sys
from collections.abc import Iterable

# Paths that any user may usually read; those that this machine lacks are left out.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/sys/devices/system/cpu"),
)
_PARTS = ("bin", "lib", "lib64", "lib32", "share", "pyvenv.cfg")  # in the folder of an interpreter or environment


def readable() -> list[str]:
    """The existing paths; links are not resolved."""
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    python = [os.path.join(prefix, part) for prefix in prefixes for part in _PARTS]
    found = [path for path in (*_SYSTEM, *python) if os.path.exists(path)]
    return [*found, *(path for path in _libraries() if not _lies_in(path, found))]


def closed(paths: Iterable[str]) -> dict[str, list[str]]:
    """Folder -> the `paths` below it, for the first folder on each path that other users may not enter."""
    found: dict[str, list[str]] = {}
    for path in dict.fromkeys(spelled for wanted in paths for spelled in (wanted, os.path.realpath(wanted))):
        parts = path.split("/")
        for end in range(2, len(parts)):
            if not os.stat(folder := "/".join(parts[:end])).st_mode & 1:
                found.setdefault(os.path.realpath(folder), []).append(path)
                break
    return found


def _libraries() -> list[str]:
    """Shared libraries that this interpreter has loaded, from any folder."""
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file if ".so" in line}
    except OSError:
        return []
    return sorted(path for path in paths if path.startswith("/") and os.path.isfile(path))


def _lies_in(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)
