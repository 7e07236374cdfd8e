"""Progress bars on standard error, and plain lines where that is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from dpad.export.progress import Advance, Progress
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.show import escaped

_SMALL = 64 << 20  # bytes of weights


class TerminalProgress(Progress):
    """Draws tasks with rich; without a terminal, names those that took over a second.

    What is told is text: rich would take `dpad[rtx]` and paths with brackets for its markup, and `:x:` for a picture;
    a terminal would obey control characters.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """A bar while the task runs, of which nothing stays; without a terminal, one line at its end."""
        description = escaped(description)
        if self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
            )
            with Bars(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(description, total=total)
                yield lambda amount: bars.advance(task, amount)
            return
        began = perf_counter()
        yield lambda amount: None
        if perf_counter() - began > 1:
            self.say(f"{description}: {perf_counter() - began:.1f} s")

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(escaped(message, lines=True), soft_wrap=True)


def fit_threads(bundle: Bundle) -> None:
    """Give eager torch one thread for small models: there, waking a second one costs more than it brings."""
    import torch

    weights = {name for step in bundle.manifest.steps.values() for name in step.weights}
    if max(bundle.path(name).stat().st_size for name in weights) < _SMALL:
        torch.set_num_threads(1)
