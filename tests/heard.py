"""Runs an export up to tracing, which is quick, to get its messages and errors about the checkpoint.

lines = heard(source, max_length=64)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpad.export.pipeline import export_bundle
from dpad.export.progress import Advance, Progress
from dpad.export.settings import ExportSettings


class _Traced(Exception):
    """The export reached tracing, so the checkpoint was accepted."""


class _Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        if description.startswith("trace"):
            raise _Traced
        yield lambda amount: None


def heard(source: Path, **settings: Any) -> list[str]:
    """The lines that an export of `source` reports before it traces the step; raises its error if it refuses."""
    progress = _Lines()
    with TemporaryDirectory() as folder:
        try:
            export_bundle(str(source), Path(folder) / "out", ExportSettings(**settings), progress)
        except _Traced:
            return progress.lines
    raise AssertionError("nothing was traced")
