"""`Target`: a `dpad serve` in a process and on a core of its own.

    with Target(bundle, "--max-running", 4, pass_ms=5, batch=4) as target:
        target.url, target.memory(), target.records(), target.stop()

The server runs on the first core that there is, those who ask on the last; its log goes to a file.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click

import measure

START, END = 120.0, 60.0  # seconds until a server answers, and until it has ended
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


class Target:
    """A server over `bundle`: with its own engine, or one of `pass_ms` a pass for `batch` sequences."""

    def __init__(self, bundle: Path, *arguments: object, pass_ms: float | None = None, batch: int = 8) -> None:
        start = ["-m", "dpad"] if pass_ms is None else [str(_NULL), str(pass_ms), str(batch)]
        command = [sys.executable, *start, "serve", str(bundle), "--port", "0", "--threads", "1"]
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        paths = os.pathsep.join([str(_NULL.parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        with pinned(SERVER):
            self.process = subprocess.Popen(  # noqa: S603
                [*command, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=self._log, env=environment
            )
        self.host, self.port = self._listens()
        self.url = f"http://{self.host}:{self.port}"

    def _listens(self) -> tuple[str, int]:
        end = time.monotonic() + START
        while not (found := re.search(r" at http://([\d.]+):(\d+)/v1\n", self.log())):
            if self.process.poll() is not None or time.monotonic() > end:
                said = self.log()
                self.__exit__(None, None, None)
                raise click.ClickException(f"the server did not start: {said or 'it said nothing'}")
            time.sleep(0.02)
        return found[1], int(found[2])

    def log(self) -> str:
        """What it has written to standard error."""
        return Path(self._log.name).read_text("utf-8")

    def records(self) -> list[dict[str, Any]]:
        """Its log, without what it says when it begins."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def memory(self) -> int:
        """Its resident memory, in bytes."""
        return measure.memory_of(self.process.pid)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.terminate()
        return self.process.wait(END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()
