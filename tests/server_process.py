"""`ServerProcess`: a real `dpad serve` in a process of its own, for tests and benchmarks.

    with ServerProcess(["-m", "dpad", "serve", "bundles/tiny", "--port", "0"]) as server:
        server.host, server.port, server.records(), server.engine, server.stop()

Standard error goes to a file: its first line says where the server listens, and the rest is its log.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START, END = 120.0, 60.0  # seconds until a server answers, and until it has ended


class ServerProcess:
    """Python with `arguments`, on one thread of OpenMP."""

    def __init__(self, arguments: Sequence[str], **environment: str) -> None:
        """Raises `RuntimeError` with what the server said, if it does not start."""
        self._said: str | None = None  # when it has ended
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed with the process
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=self._log, env=variables
        )
        self.host, self.port = self._listens()
        self.url = f"http://{self.host}:{self.port}"

    def _listens(self) -> tuple[str, int]:
        end = time.monotonic() + START
        while not (found := re.search(r" at http://([\d.]+):(\d+)/v1\n", self.log())):
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__(None, None, None)
                raise RuntimeError(f"the server did not start: {self.log() or 'it said nothing'}")
            time.sleep(0.02)
        return found[1], int(found[2])

    def log(self) -> str:
        """What it has written to standard error."""
        return Path(self._log.name).read_text("utf-8") if self._said is None else self._said

    def records(self) -> list[dict[str, Any]]:
        """Its log, without what it says when it begins."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    @property
    def engine(self) -> int | None:
        """The process that runs its engine; None while there is none."""
        return next(iter(children(self.process.pid)), None)

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
        if self._said is None:
            self._said = self.log()
            self._log.close()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    with suppress(OSError):
        return list(filter(alive, map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())))
    return []


def alive(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False
