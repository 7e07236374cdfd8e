"""Reads local data files: JSON lines, plain or gzipped, checked line by line.

    rows = read_lines(Path("gsm8k_test.jsonl"), ("question", "answer"))

Data files are untrusted input: only regular files of limited size are read. Nothing is downloaded.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from dpad.evaluation.errors import DataError
from dpad.runtime.bundle.files import open_file
from dpad.runtime.bundle.hashes import sha256

_MOST = 1 << 27  # most bytes of a data file, unpacked; as text and Python objects it takes several times as many


def read_lines(path: Path, fields: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """One dict per line with the named text fields; other fields and blank lines are skipped.

    Raises a `DataError` that names file and line if a line is not JSON or lacks a field, and one for a file without
    samples.
    """
    try:
        text = _unpacked(path).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a file of JSON lines, plain or gzipped") from None
    lines = enumerate(text.split("\n"), 1)
    rows = [_row(line, f"{path}, line {number}", fields, optional) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path} holds no samples; give one JSON object per line with {', '.join(fields)}")
    return rows


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Name -> SHA-256 of data files. Names have no folder, so a second file of the same name gets a number."""
    found: dict[str, str] = {}
    for number, path in enumerate(files, 1):
        try:
            digest = sha256(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}; give a file of JSON lines") from None
        found[f"{path.name} ({number})" if path.name in found else path.name] = digest
    return found


def _unpacked(path: Path) -> bytes:
    """The contents of a data file, unpacked if gzipped; raises `ValueError` over the limit, and reads no further."""
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
        raise DataError(f"{where} is not an object; {needed}")
    for name in fields:
        if not isinstance(row.get(name), str):
            raise DataError(f"{where} has no text {name!r}; {needed}")
    for name in optional:
        if not isinstance(row.get(name, ""), str):
            raise DataError(f"{where}: {name!r} is not text; leave it out or give text")
    return {name: row[name] for name in (*fields, *optional) if name in row}
