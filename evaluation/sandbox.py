"""`Sandbox`: runs programs that a model wrote, in a process of their own that can do little harm.

    sandbox = Sandbox(Limits(seconds=5))       # raises SandboxError if this machine cannot isolate
    sandbox.run("assert 1 + 1 == 2").passed

A program passes if it ran to its end. Its last act is then done by the launcher: it copies a token,
drawn for this run, from one pipe to another. A program that leaves early, by `sys.exit(0)` or
`os._exit(0)`, never gets there.

Prevented, by namespaces, Landlock and resource limits of Linux: any network, processes that outlive the
run or see others, changes of files outside a temporary folder, and more time, memory, processes or
output than `Limits`. Not prevented: reading whatever the user may read; connecting to Unix sockets in
the file system; changes of owner, mode and times of files of the user; and code that goes looking for
the token's pipe in order to cheat. The environment is empty and there is no standard input.
"""

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dpad.evaluation.errors import SandboxError

_LAUNCHER = Path(__file__).with_name("launcher.py")
_TAIL = 2000  # bytes of the error output that are looked at


@dataclass(frozen=True)
class Limits:
    """Of one program.

    Attributes:
        seconds: of wall time, and of each process's CPU time, rounded up.
        memory: bytes of address space, each process.
        processes: processes and threads at one time.
        output: bytes of any file it writes, its error output included.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    output: int = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """Whether a program ran to its end, and if not, what is known of why: one line."""

    passed: bool
    detail: str


class Sandbox:
    """Runs programs one at a time; the constructor runs one that must pass.

    Attributes:
        refused: what the kernel refused, one part a line; empty unless `weak`.
    """

    def __init__(self, limits: Limits = Limits(), *, weak: bool = False) -> None:
        """`weak` goes on where namespaces or Landlock are refused; limits of time and memory hold all the same.

        Raises `SandboxError` if a part is refused and not `weak`, or a program that does nothing fails.
        """
        self.limits = limits
        self._weak = weak
        probe, said = self._run("pass")
        if not probe.passed:
            raise SandboxError(
                f"candidate code cannot be isolated on this machine ({probe.detail}); run it on Linux 5.13 or later "
                "where unprivileged user namespaces and Landlock are allowed (in a container this may take other "
                "security options), or accept what is missing with --weak-sandbox"
            )
        self.refused = said

    def run(self, program: str) -> Verdict:
        """Run `program` to its end or its limits; always returns."""
        return self._run(program)[0]

    def _run(self, program: str) -> tuple[Verdict, str]:
        """The verdict, and the end of the error output."""
        with (
            tempfile.TemporaryDirectory(prefix="dpad-candidate-", ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as errors,
        ):
            Path(folder, "candidate.py").write_text(program, encoding="utf-8", errors="replace")
            passed, timed_out = self._launch(folder, errors)
            errors.seek(max(errors.seek(0, os.SEEK_END) - _TAIL, 0))
            said = errors.read().decode("utf-8", errors="replace").strip()
        if timed_out:
            return Verdict(False, f"not finished after {self.limits.seconds:g} s"), said
        return Verdict(passed, "" if passed else (said or "ended before its last line").splitlines()[-1]), said

    def _launch(self, folder: str, errors: IO[bytes]) -> tuple[bool, bool]:
        """Whether the program reached its end, and whether it ran out of time."""
        token = secrets.token_hex(16).encode()
        token_out, token_in = os.pipe()
        report_out, report_in = os.pipe()
        try:
            os.write(token_in, token)
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-B", str(_LAUNCHER), self._settings(token_out, report_in)],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(token_out, report_in),
                start_new_session=True,
            )
            timed_out = not _ends(process, self.limits.seconds)
            os.set_blocking(report_out, False)
            try:
                said = os.read(report_out, 2 * len(token))
            except BlockingIOError:
                said = b""
        finally:
            for descriptor in (token_out, token_in, report_out, report_in):
                os.close(descriptor)
        return said == token and not timed_out, timed_out

    def _settings(self, token: int, report: int) -> str:
        limits = {
            "RLIMIT_AS": self.limits.memory,
            "RLIMIT_CPU": math.ceil(self.limits.seconds),
            "RLIMIT_NPROC": self.limits.processes,
            "RLIMIT_FSIZE": self.limits.output,
            "RLIMIT_CORE": 0,
        }
        return json.dumps({"token": token, "report": report, "weak": self._weak, "limits": limits})


def _ends(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Wait so long for the launcher; then, and if interrupted, kill it with all that it started."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
