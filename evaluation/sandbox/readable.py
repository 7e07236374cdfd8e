"""What a candidate program may read: the interpreter, its packages and libraries, and nothing else of the user's.

paths = readable()          # folders and files, for Landlock
closed(paths)               # folders that only root may pass -> those of `paths` that lie behind them
"""

import os
import sys
from collections.abc import Iterable

# Public by custom; whatever of it this machine lacks is left out.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/sys/devices/system/cpu"),
)
_PARTS = ("bin", "lib", "lib64", "lib32", "share", "pyvenv.cfg")  # of an interpreter's or environment's folder


def readable() -> list[str]:
    """Existing paths, links among them as they are spelled."""
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    python = [os.path.join(prefix, part) for prefix in prefixes for part in _PARTS]
    found = [path for path in (*_SYSTEM, *python) if os.path.exists(path)]
    return [*found, *(path for path in _libraries() if not _lies_in(path, found))]


def closed(paths: Iterable[str]) -> dict[str, list[str]]:
    """Of the folders on the way to `paths`, the first that users other than its owner may not pass."""
    found: dict[str, list[str]] = {}
    for path in dict.fromkeys(spelled for wanted in paths for spelled in (wanted, os.path.realpath(wanted))):
        parts = path.split("/")
        for end in range(2, len(parts)):
            if not os.stat(folder := "/".join(parts[:end])).st_mode & 1:
                found.setdefault(os.path.realpath(folder), []).append(path)
                break
    return found


def _libraries() -> list[str]:
    """Shared libraries that this interpreter has loaded from wherever its own paths led."""
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split(maxsplit=5)[-1].strip() for line in file if ".so" in line}
    except OSError:
        return []
    return sorted(path for path in paths if path.startswith("/") and os.path.isfile(path))


def _lies_in(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)
