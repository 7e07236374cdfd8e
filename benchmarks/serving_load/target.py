"""`Target`: a `dpad serve` in a process and on a core of its own.

    with Target(bundle, "--max-running", 4, pass_ms=5, batch=4) as target:
        target.url, target.memory(), target.records(), target.stop()

The server runs on the first core that there is, those who ask on the last; its log goes to a file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from server_process import ServerProcess, children

import measure

_NULL = Path(__file__).with_name("null_server.py")
CORES = sorted(os.sched_getaffinity(0))
SERVER, LOAD = CORES[0], CORES[-1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and the processes that it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Target(ServerProcess):
    """A server over `bundle`: with its own engine, or one of `pass_ms` a pass for `batch` sequences."""

    def __init__(self, bundle: Path, *arguments: object, pass_ms: float | None = None, batch: int = 8) -> None:
        start = ["-m", "dpad"] if pass_ms is None else [str(_NULL), str(pass_ms), str(batch)]
        paths = os.pathsep.join([str(_NULL.parent.parent), os.environ.get("PYTHONPATH", "")])
        served = ["serve", str(bundle), "--port", "0", "--threads", "1"]
        with pinned(SERVER):
            try:
                super().__init__([*start, *served, *map(str, arguments)], PYTHONPATH=paths)
            except RuntimeError as error:
                raise click.ClickException(str(error)) from error

    def memory(self) -> int:
        """The resident memory of its two processes, in bytes."""
        return sum(map(measure.memory_of, [self.process.pid, *children(self.process.pid)]))
