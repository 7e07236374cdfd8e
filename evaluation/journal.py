"""`Journal` keeps finished samples on disk, so that a stopped run can continue.

    with Journal.open(path, settings) as journal:
        journal.records                     # key -> record of an earlier run
        journal.add({"key": key} | found)   # on disk when it returns

The first line holds the settings. An incomplete last line, which an interrupted write leaves, is dropped. A file with
other settings, one that is not a journal, and one that another run is writing are refused, never overwritten.
"""

import fcntl
import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dpad.evaluation.errors import DataError, EvaluationError, ResumeError
from dpad.runtime.checks import is_number
from dpad.runtime.show import shown

Record = dict[str, Any]

_NUMBERS = ("nfe", "tokens", "seconds")  # fields of a record, beside its `key` and `scores`
_LARGEST = 1 << 53  # largest value of these and of scores, so that squares and sums do not overflow


class Journal:
    """Records by key, in memory and, unless `file` is None, as JSON lines."""

    def __init__(self, records: dict[str, Record], file: IO[bytes] | None) -> None:
        self.records = records
        self._file = file

    @classmethod
    def open(cls, path: Path | None, settings: dict[str, Any]) -> "Journal":
        """Start a journal or continue the one at `path`; None keeps it in memory.

        Raises:
            ResumeError: the file has samples of other settings (names the first that differs), or another run
                is writing it.
            DataError: the file cannot be read or written, or is not a journal.
        """
        if path is None:
            return cls({}, None)
        file: IO[bytes] | None = None
        try:
            if path.exists() and not path.is_file():
                raise DataError(f"{path} is not a regular file; remove it or give another --out")
            file = path.open("a+b")
            return cls._go_on(file, path, settings)
        except BlockingIOError:
            error: Exception = ResumeError(f"another run is writing {path}; wait for its end, or give another --out")
        except OSError as failed:
            error = DataError(f"{path} cannot be written: {failed}; give another --out")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as failed:
            error = DataError(f"{path} is not a file of samples ({failed!r}); remove it or give another --out")
        except EvaluationError as failed:
            error = failed
        if file is not None:
            with suppress(OSError):  # closing tries again to write what could not be written
                file.close()
        raise error

    @classmethod
    def _go_on(cls, file: IO[bytes], path: Path, settings: dict[str, Any]) -> "Journal":
        """Read the journal in `file`, and continue after its last complete line."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
        kept, first = file.read(), _line({"settings": settings})
        whole = kept[: kept.rfind(b"\n") + 1]
        if not whole and not first.startswith(kept):
            raise ValueError("it does not begin with the settings of a run")
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines:
            _require_same(lines[0]["settings"], settings, path)
        for line in lines[1:]:
            _check_record(line)
        file.truncate(len(whole))
        journal = cls({line["key"]: line for line in lines[1:]}, file)
        if not lines:
            journal._write(first)
        return journal

    def add(self, record: Record) -> None:
        """Keep a finished sample under its `key`; raises `DataError` if it cannot be written to disk."""
        try:
            self._write(_line(record))
        except OSError as error:
            raise DataError(
                f"a sample cannot be written: {error}; free disk space, and run the same command again to continue"
            ) from error
        self.records[record["key"]] = record

    def _write(self, line: bytes) -> None:
        if self._file is not None:
            self._file.write(line)
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # `add` has already reported what could not be written
                self._file.close()


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _check_record(record: Record) -> None:
    """Raise a built-in error, such as `KeyError`, unless `record` has the fields of a sample."""
    numbers = [*record["scores"].values(), *(record[name] for name in _NUMBERS)]
    if not isinstance(record["key"], str) or not all(map(is_number, numbers)):
        raise TypeError("a sample needs text as its key, and numbers as scores, nfe, tokens and seconds")
    if not all(abs(number) <= _LARGEST for number in numbers) or min(numbers[-len(_NUMBERS) :]) < 0:
        raise ValueError("a number of a sample is out of range")


def _require_same(kept: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    now = json.loads(json.dumps(settings))
    for name in sorted(kept.keys() | now.keys()):
        before, after = kept.get(name), now.get(name)
        if before != after:
            if isinstance(before, dict) and isinstance(after, dict):
                for key in sorted(before.keys() | after.keys()):
                    if before.get(key) != after.get(key):
                        name, before, after = f"{name}.{key}", before.get(key), after.get(key)
                        break
            raise ResumeError(
                f"{path} was made with {name} {shown(before)}, but this run has {shown(after)}; "
                "use the earlier settings to continue it, or give another --out"
            )
