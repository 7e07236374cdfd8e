"""`opened` opens a bundle, and shows the progress on standard error.

with opened(directory, engine="auto") as model:
    ...
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from dpad import DiffusionModel, load


@contextmanager
def opened(directory: Path, **options: Any) -> Iterator[DiffusionModel]:
    """Call `dpad.load` with `options`; on a terminal a line shows its progress, and vanishes at the end."""
    with progress() as tell:
        model = load(directory, **options, progress=tell)
    with model:
        yield model


@contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function for the `progress` of `load`; on a terminal a line shows the progress within the block."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda *what: None
        return
    with console.status("opening the bundle") as status:
        yield lambda *what: status.update(_line(*what))


def _line(what: str, done: int, total: int | None) -> str:
    """The text of the line, such as "checking files: 5.2 GB" or "recording steps: 12 of 96"."""
    return f"{what}: {done / 1e9:.1f} GB" if total is None else f"{what}: {done} of {total}"
