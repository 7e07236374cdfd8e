"""Files from outside, read without waiting, and JSON that is safe to walk and to write again.

    data = read_json(Path("bundle/manifest.json"))      # OSError or ValueError, whatever lies there

To open a named pipe that nobody writes is to wait for ever, and to look first is too early: what is opened is asked.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_DEPTH = 64  # of JSON: far from where recursion ends


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened to be read as bytes; raises `OSError` for anything else."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def read_bytes(path: Path) -> bytes:
    """All of a regular file; raises `OSError`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file; raises `OSError` or `ValueError`."""
    return read_bytes(path).decode("utf-8")


def read_json(path: Path) -> Any:
    """The JSON of a regular file; raises `OSError` or `ValueError`, also for what could not be handled further.

    That is nesting deeper than 64, and half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    try:
        data = json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEPTH}") from None
    _check(data, 0)
    return data


def _check(data: Any, depth: int) -> None:
    if depth > _DEPTH:
        raise ValueError(f"it is nested deeper than {_DEPTH}")
    if isinstance(data, str):
        data.encode()  # UnicodeEncodeError is a ValueError
    elif isinstance(data, dict):
        for key, value in data.items():
            key.encode()
            _check(value, depth + 1)
    elif isinstance(data, list):
        for value in data:
            _check(value, depth + 1)
