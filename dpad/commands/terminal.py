"""Progress bars on standard error, and plain lines where that is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from dpad.export.progress import Advance, Progress


class TerminalProgress(Progress):
    """Draws tasks with rich; without a terminal, prints those that took over a second."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """A bar while the task runs; nothing stays of it."""
        began = perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(description, total=total)
            yield lambda amount: bars.advance(task, amount)
        if not self._console.is_terminal and perf_counter() - began > 1:
            self._console.print(f"{description}: {perf_counter() - began:.1f} s", soft_wrap=True)

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(message, soft_wrap=True)
