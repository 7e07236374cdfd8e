"""`Progress`: the interface through which long work reports its progress.

    with progress.task("hash weights", total=bytes) as advance:
        advance(4096)

The export itself prints nothing: it reports to an object of this class. The command line draws these reports; this base
class drops them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Progress:
    """Progress that is not shown; subclass it to draw."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """Report a task of `total` bytes or steps (None: unknown) while the context is open."""
        yield lambda amount: None

    def say(self, message: str) -> None:
        """Report one line of text."""
