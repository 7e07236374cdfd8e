"""Reads untrusted files within limits and without blocking, and JSON that is safe to traverse and to write again.

    data = read_json(Path("bundle/manifest.json"))      # raises only OSError or ValueError, whatever the file is

Opening a named pipe that nobody writes to blocks for ever, so files are opened non-blocking. Their type is checked
after opening, because a file could be replaced between a check and the opening. Sizes are limited, because a huge
sparse file costs its sender nothing, and a few bytes of JSON make large objects in memory.
"""

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

DEPTH = 64  # most levels of nesting in JSON, far below Python's recursion limit
SIZE = 16 << 20  # most bytes of a file, unless the reader passes another limit
VALUES = 1_000_000  # most values in JSON: an empty object has 2 bytes in a file and 64 in memory


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read bytes; raises `OSError` for anything else, such as a pipe or a device."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def read_bytes(path: Path, size: int = SIZE) -> bytes:
    """The contents of a regular file; raises `OSError`, also if it has more than `size` bytes."""
    with open_file(path) as file:
        data = file.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EFBIG, f"over {size >> 20} MiB, the limit for this file", str(path))
    return data


def read_text(path: Path, size: int = SIZE) -> str:
    """The UTF-8 text of a regular file of at most `size` bytes; raises `OSError` or `ValueError`."""
    return read_bytes(path, size).decode("utf-8")


def read_json(path: Path) -> Any:
    """Parse the JSON in a regular file; raises `OSError` or `ValueError`.

    It also refuses nesting deeper than 64, and lone surrogates, which JSON can spell and UTF-8 cannot encode.
    """
    data = parse_json(read_text(path))
    _check(data, 0)
    return data


def parse_json(text: str, values: int = VALUES, *, unique: bool = False) -> Any:
    """Parse JSON of at most `values` values; raises `ValueError`.

    `unique` also refuses an object with the same name twice: Python takes the last value, and another library that
    reads the same text may take the first.
    """
    if (found := text.count(",") + text.count("[") + text.count("{")) > values:
        raise ValueError(f"it has {found} values, over the limit of {values}")
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it names {name!r} twice in one object")
    return data


def _check(data: Any, depth: int) -> None:
    if depth > DEPTH:
        raise ValueError(f"it is nested deeper than {DEPTH}")
    if isinstance(data, str):
        data.encode()  # UnicodeEncodeError is a ValueError
    elif isinstance(data, dict):
        for key, value in data.items():
            key.encode()
            _check(value, depth + 1)
    elif isinstance(data, list):
        for value in data:
            _check(value, depth + 1)
