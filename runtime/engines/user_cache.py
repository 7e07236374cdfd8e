"""Small files that save time on the next run, in the user's cache folder; losing one costs nothing else.

    data = read("timing-tensorrt-11.1.0-8.9.cache")     # b"" if there is none
    write("timing-tensorrt-11.1.0-8.9.cache", data)

The folder is $XDG_CACHE_HOME/dpad, or ~/.cache/dpad. Nothing here raises: a cache that
cannot be read or written is as good as none. Readers check what they read.
"""

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """Where the files lie; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpad"


def read(name: str) -> bytes:
    """What was written under `name`; empty if nothing was, or it cannot be read."""
    try:
        return (folder() / name).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return b""


def write(name: str, data: bytes) -> bool:
    """Put `data` in place in one rename; False if that is not possible here."""
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
