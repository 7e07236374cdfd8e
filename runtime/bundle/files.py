"""Files from outside, read without waiting and within limits, and JSON that is safe to walk and to write again.

    data = read_json(Path("bundle/manifest.json"))      # OSError or ValueError, whatever lies there

To open a named pipe that nobody writes is to wait for ever, and to look first is too early: what is opened is asked.
So is its size: a file of zeros costs nothing to send, and JSON of few bytes makes objects of many.
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

DEPTH = 64  # of JSON: far from where recursion ends
SIZE = 16 << 20  # bytes of a file, unless its reader names another limit
VALUES = 1_000_000  # of JSON: an empty object is 2 bytes in a file and 64 in memory


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened to be read as bytes; raises `OSError` for anything else."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def read_bytes(path: Path, size: int = SIZE) -> bytes:
    """All of a regular file; raises `OSError`, also for one of more than `size` bytes."""
    with open_file(path) as file:
        data = file.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EFBIG, f"over {size >> 20} MiB, which is the most that is read of it", str(path))
    return data


def read_text(path: Path, size: int = SIZE) -> str:
    """The UTF-8 text of a regular file of at most `size` bytes; raises `OSError` or `ValueError`."""
    return read_bytes(path, size).decode("utf-8")


def read_json(path: Path) -> Any:
    """The JSON of a regular file; raises `OSError` or `ValueError`, also for what could not be handled further.

    That is nesting deeper than 64, and half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    data = parse_json(read_text(path))
    _check(data, 0)
    return data


def parse_json(text: str, values: int = VALUES, *, unique: bool = False) -> Any:
    """JSON of at most `values` values; raises `ValueError`.

    With `unique`, also for a name that comes twice in an object: here the last one counts, and another library that
    reads the same text may see the first.
    """
    if (found := text.count(",") + text.count("[") + text.count("{")) > values:
        raise ValueError(f"it has {found} values, over the {values} that are read")
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
