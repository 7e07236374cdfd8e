"""Small files in the user's cache folder that make the next run faster; losing one costs only that time.

    data = read("timing-tensorrt-11.1.0-8.9.cache")     # b"" if there is none
    write("timing-tensorrt-11.1.0-8.9.cache", data)

The folder is $XDG_CACHE_HOME/dpad, or ~/.cache/dpad. These functions never raise: a cache that cannot be read or
written counts as empty. Callers validate what they read.
"""

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """The cache folder; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpad"


def read(name: str) -> bytes:
    """The contents of the file `name`; empty if it does not exist or cannot be read."""
    try:
        return (folder() / name).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return b""


def write(name: str, data: bytes) -> bool:
    """Write `data` to the file `name` atomically, by a rename; returns False if it cannot be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder(), prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, folder() / name)
        except OSError:
            os.unlink(temporary)
            raise
    except (OSError, RuntimeError):
        return False
    return True
