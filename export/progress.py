"""`Progress`: how long work reports itself; the command line draws it, a library call may not.

    with progress.task("hash weights", total=bytes) as advance:
        advance(4096)

Exporting never prints: it says what it does to an object of this class.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Progress:
    """Silent progress; subclass it to draw. `say` is one line about a finished step."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """A unit of work of `total` bytes or steps (None: unknown)."""
        yield lambda amount: None

    def say(self, message: str) -> None:
        """One finished step, for people."""
