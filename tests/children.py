"""Child processes with limits, for code that may crash or hang its process.

    with Child(PROGRAM, memory=3 << 30) as child:
        child.ask("some/bundle", seconds=30)      # {"ended": "Aborted"} or PROGRAM's answer, as JSON

The program reads one JSON string per line and answers with one JSON document per line; if it dies, it is restarted.
"""

import json
import resource
import select
import signal
import subprocess
import sys
import textwrap
from types import TracebackType
from typing import Any, Self


class Child:
    """One process at a time, with an address space of `memory` bytes."""

    def __init__(self, program: str, memory: int) -> None:
        self._command, self._memory = [sys.executable, "-c", textwrap.dedent(program)], memory
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (self._memory, self._memory))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=quiet, text=True, preexec_fn=limit)

    def ask(self, question: str, seconds: float) -> dict[str, Any]:
        """The answer; `ended` names the signal that ended the process, or says that it was too slow."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], seconds)[0]:
            self._process.kill()
        answer = stdout.readline()
        if answer.endswith("\n"):
            return dict(json.loads(answer))
        self.__exit__(None, None, None)
        code = self._process.returncode
        self._process = self._start()
        slow = code == -signal.SIGKILL
        return {"ended": "too slow" if slow else signal.strsignal(-code) if code < 0 else f"status {code}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
