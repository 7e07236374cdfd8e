"""Local data files: JSON lines, plain or gzipped, checked line by line.

    rows = read_lines(Path("gsm8k_test.jsonl"), ("question", "answer"))

Data files are input from outside: only regular files are read, and only so much. Nothing is downloaded.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from dpad.evaluation.errors import DataError
from dpad.runtime.bundle.files import open_file
from dpad.runtime.bundle.hashes import sha256

_MOST = 1 << 27  # bytes of a data file, unpacked; as Python's text and objects it is several times as large


def read_lines(path: Path, fields: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """One dict a line with the named text fields; others are left out, and so are blank lines.

    Raises `DataError`, naming file and line, for what is not JSON or lacks a field, and for a file
    without samples.
    """
    try:
        text = _unpacked(path).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a file of JSON lines, plain or gzipped") from None
    lines = enumerate(text.split("\n"), 1)
    rows = [_row(line, f"{path}, line {number}", fields, optional) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path} holds no samples; give one JSON object a line with {', '.join(fields)}")
    return rows


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Name -> SHA-256 of data files; the folder they lie in does not matter, and two of one name are told apart."""
    found: dict[str, str] = {}
    for number, path in enumerate(files, 1):
        try:
            digest = sha256(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}; give a file of JSON lines") from None
        found[f"{path.name} ({number})" if path.name in found else path.name] = digest
    return found


def _unpacked(path: Path) -> bytes:
    """All of a data file, unpacked if it is gzipped; raises `ValueError` beyond the limit, before it is in memory."""
    with open_file(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if packed else file as stream:
            data: bytes = stream.read(_MOST + 1)
    if len(data) > _MOST:
        raise ValueError(f"it holds more than {_MOST >> 20} MiB; split it")
    return data


def _row(line: str, where: str, fields: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    needed = f"a line is a JSON object with the texts {', '.join(fields)}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); {needed}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is no object; {needed}")
    for name in fields:
        if not isinstance(row.get(name), str):
            raise DataError(f"{where} has no text {name!r}; {needed}")
    for name in optional:
        if not isinstance(row.get(name, ""), str):
            raise DataError(f"{where}: {name!r} is no text; leave it out or give text")
    return {name: row[name] for name in (*fields, *optional) if name in row}
