"""`Journal`: finished samples on disk, so that a run that was stopped can go on.

    with Journal.open(path, settings) as journal:
        journal.records                  # key -> record of an earlier run
        journal.add({"key": key, ...})   # on disk when it returns

The first line holds the settings. A last line that was cut off while it was written is dropped. A
journal of other settings is refused, never overwritten.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dpad.evaluation.errors import DataError, ResumeError
from dpad.runtime.files import read_bytes

Record = dict[str, Any]


class Journal:
    """Records by key, in memory and, unless `file` is None, as JSON lines."""

    def __init__(self, records: dict[str, Record], file: IO[bytes] | None) -> None:
        self.records = records
        self._file = file

    @classmethod
    def open(cls, path: Path | None, settings: dict[str, Any]) -> "Journal":
        """Start a journal or go on with the one at `path`; None keeps it in memory.

        Raises:
            ResumeError: the file holds samples of other settings; names the first that differs.
            DataError: the file cannot be read or written, or is no journal.
        """
        if path is None:
            return cls({}, None)
        try:
            kept = read_bytes(path) if path.exists() else b""
            whole = kept[: kept.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                _require_same(lines[0]["settings"], settings, path)
            records = {line["key"]: line for line in lines[1:]}
            file = path.open("r+b" if path.exists() else "wb")
            file.truncate(len(whole))
            file.seek(len(whole))
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}; give another --out") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a file of samples ({error!r}); remove it or give another --out") from None
        journal = cls(records, file)
        if not lines:
            journal._write({"settings": settings})
        return journal

    def add(self, record: Record) -> None:
        """Keep a finished sample, found again by its `key`."""
        self.records[record["key"]] = record
        self._write(record)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _require_same(kept: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    now = json.loads(json.dumps(settings))
    for name in sorted(kept.keys() | now.keys()):
        before, after = kept.get(name), now.get(name)
        if before != after:
            if isinstance(before, dict) and isinstance(after, dict):
                inner = next(key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key))
                name, before, after = f"{name}.{inner}", before.get(inner), after.get(inner)
            raise ResumeError(
                f"{path} was made with {name} {before!r}, this run has {after!r}; "
                "repeat the earlier settings to go on, or give another --out"
            )
