"""Local data files: JSON lines, plain or gzipped, checked line by line.

    rows = read_lines(Path("gsm8k_test.jsonl"), ("question", "answer"))

Data files are input from outside; nothing is downloaded.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from dpad.evaluation.errors import DataError


def read_lines(path: Path, fields: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """One dict a line with the named text fields; others are left out, and so are blank lines.

    Raises `DataError`, naming file and line, for what is not JSON or lacks a field, and for a file
    without samples.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a file of JSON lines, plain or gzipped") from None
    lines = enumerate(text.split("\n"), 1)
    rows = [_row(line, f"{path}, line {number}", fields, optional) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path} holds no samples; give one JSON object a line with {', '.join(fields)}")
    return rows


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
