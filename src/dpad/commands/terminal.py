"""Progress bars on standard error; plain lines if that is not a terminal."""

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
    """Draws tasks with rich; without a terminal it prints a line for each task that took over a second.

    Messages are plain text: rich's markup and emoji are off, because it would misread `dpad[rtx]`, paths with brackets
    and `:x:`, and control characters are escaped.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Show a bar while the task runs, then remove it; without a terminal, print one line at its end."""
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
        """Print a line that stays."""
        self._console.print(escaped(message, lines=True), soft_wrap=True)


def fit_threads(bundle: Bundle) -> None:
    """Give eager torch one thread for small models, where waking a second thread costs more than it saves."""
    import torch

    weights = {name for step in bundle.manifest.steps.values() for name in step.weights}
    if max(bundle.path(name).stat().st_size for name in weights) < _SMALL:
        torch.set_num_threads(1)
