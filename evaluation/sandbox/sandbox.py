"""`Sandbox` runs programs that a model wrote, in an isolated process.

    sandbox = Sandbox(Limits(seconds=5))       # raises SandboxError if this machine cannot isolate
    sandbox.run("assert 1 + 1 == 2").passed

A program passes if it runs to its end. Then the launcher copies a token, drawn for this run, from one pipe to another;
a program that exits early, by `sys.exit(0)` or `os._exit(0)`, does not get so far.

Linux's namespaces, Landlock, seccomp and resource limits prevent: network access; processes that outlive the run or see
others; reading or changing files outside a temporary folder, except that the interpreter, its packages and the system's
libraries may be read; Unix sockets; and more time, memory, processes or output than `Limits`. If the user is root,
programs run as nobody. They do not prevent: seeing that a file exists and how large it is; changing mode and times of
the user's files, unless the user is root; and cheating by code that searches for the token's pipe. The environment is
empty and there is no standard input.
"""

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dpad.evaluation.errors import SandboxError
from dpad.evaluation.sandbox.memory import can_be_read, used
from dpad.evaluation.sandbox.readable import closed, readable
from dpad.evaluation.sandbox.removal import remove
from dpad.evaluation.sandbox.syscalls import refusals
from dpad.runtime.checks import is_integer, is_number
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import kind, shown

_LAUNCHER = Path(__file__).with_name("launcher.py")
_TAIL = 2000  # bytes of the error output that are read, from its end
_FILES = 64  # all files together may be this many times as large as the largest file
_NAMES = 1 << 14  # most files and folders
_MOST = 1 << 48  # largest value of any limit: it fits into the kernel's fields, also when multiplied by `_FILES`
_PROBE = "import colorsys"  # a module that is not loaded yet, so that it must be read from the interpreter's files
_LOOK = 0.02  # seconds between two measurements of memory


@dataclass(frozen=True)
class Limits:
    """Limits of one program.

    Attributes:
        seconds: wall time, and each process's CPU time (rounded up).
        memory: bytes of address space of each process, and bytes that all of them hold together.
        processes: processes and threads at one time.
        output: bytes of each file that it writes, its error output included; all files together may have 64 times as
            many.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    output: int = 1 << 20

    def __post_init__(self) -> None:
        """Raise `InvalidRequest` for a value that is not a limit."""
        if not is_number(self.seconds) or not 0 < self.seconds <= _MOST:
            raise InvalidRequest(f"seconds {shown(self.seconds)} must be a number above 0, and at most {_MOST}")
        for name in ("memory", "processes", "output"):
            value = getattr(self, name)
            if not is_integer(value) or not 0 < value <= _MOST:
                raise InvalidRequest(f"{name} {shown(value)} must be an integer from 1 to {_MOST}")


@dataclass(frozen=True)
class Verdict:
    """Whether a program ran to its end; if not, `detail` is one line about the cause."""

    passed: bool
    detail: str


class Sandbox:
    """Runs programs one at a time; the constructor runs a probe, which must pass.

    Attributes:
        refused: the parts of the isolation that the kernel refused, one per line; empty unless `weak`.
        left: folders of programs that could not be removed, and why, one line each.
    """

    def __init__(self, limits: Limits = Limits(), *, weak: bool = False) -> None:
        """`weak` runs programs even without namespaces, Landlock or seccomp; time and memory stay limited.

        Raises `SandboxError` if a part is refused without `weak`, or if the probe fails.
        """
        if sys.platform != "linux":
            raise SandboxError(f"candidate code cannot be isolated on {sys.platform}; run it on Linux 5.13 or later")
        self.limits = limits
        self.left: list[str] = []
        self._weak = weak
        self._readable = readable()
        self._filter = refusals(os.uname().machine).hex()
        watched = "" if can_be_read() else "memory of several processes: /proc lists no children"
        probe, said = self._run(_PROBE)
        if watched and not weak:
            probe = Verdict(False, watched)
        if _PROBE.split()[1] in probe.detail:
            raise SandboxError(
                f"programs run without the user's rights and cannot read Python at {sys.base_prefix}; let all users "
                "read it and enter the folders above it, or use the system's Python"
            )
        if not probe.passed:
            raise SandboxError(
                f"candidate code cannot be isolated on this machine ({probe.detail}); run it on Linux 5.13 or later "
                "where unprivileged user namespaces and Landlock are allowed (in a container this may take other "
                "security options), or accept what is missing with --weak-sandbox"
            )
        self.refused = "\n".join(filter(None, (said, watched)))

    def run(self, program: str) -> Verdict:
        """Run `program` to its end or its limits; raises `SandboxError` if it cannot be started."""
        if not isinstance(program, str):
            raise InvalidRequest(f"a program is text, not {kind(program)}")
        return self._run(program)[0]

    def _run(self, program: str) -> tuple[Verdict, str]:
        """Run `program`; returns the verdict and the end of the error output."""
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="dpad-candidate-"))
            with tempfile.TemporaryFile() as errors:
                (folder / "candidate.py").write_text(program, encoding="utf-8", errors="replace")
                passed, stopped = self._launch(folder, errors)
                errors.seek(max(errors.seek(0, os.SEEK_END) - _TAIL, 0))
                said = errors.read().decode("utf-8", errors="replace").strip()
        except OSError as error:
            raise SandboxError(f"a program could not be started ({error}); free resources, and run it again") from error
        finally:
            if folder is not None and (left := remove(folder)):
                self.left.append(left)
        if stopped:
            return Verdict(False, stopped), said
        return Verdict(passed, "" if passed else (said or "ended before its last line").splitlines()[-1]), said

    def _launch(self, folder: Path, errors: IO[bytes]) -> tuple[bool, str]:
        """Run the launcher; returns whether the program reached its end, and why it was stopped, if it was."""
        token = secrets.token_hex(16).encode()
        token_out, token_in = os.pipe()
        report_out, report_in = os.pipe()
        try:
            os.write(token_in, token)
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-B", str(_LAUNCHER), self._settings(folder, token_out, report_in)],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(token_out, report_in),
                start_new_session=True,
            )
            stopped = _wait(process, self.limits)
            os.set_blocking(report_out, False)
            try:
                said = os.read(report_out, 2 * len(token))
            except BlockingIOError:
                said = b""
        finally:
            for descriptor in (token_out, token_in, report_out, report_in):
                os.close(descriptor)
        return said == token and not stopped, stopped

    def _settings(self, folder: Path, token: int, report: int) -> str:
        limits = {
            "RLIMIT_AS": self.limits.memory,
            "RLIMIT_CPU": math.ceil(self.limits.seconds),
            "RLIMIT_NPROC": self.limits.processes,
            "RLIMIT_FSIZE": self.limits.output,
            "RLIMIT_NOFILE": 64,  # limits the memory of socket buffers
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_CORE": 0,
        }
        settings = {
            "token": token,
            "report": report,
            "weak": self._weak,
            "limits": limits,
            "parent": os.getpid(),
            "readable": self._readable,
            "closed": closed(self._readable) if os.geteuid() == 0 else {},
            "disk": f"size={_FILES * self.limits.output},nr_inodes={_NAMES}",
            "filter": self._filter,
        }
        return json.dumps(settings)


def _wait(process: "subprocess.Popen[bytes]", limits: Limits) -> str:
    """Wait for the launcher while it and its descendants keep the limits; returns "", or the limit that they exceeded.

    At the end, and on an interrupt, all of them are killed.
    """
    until = time.monotonic() + limits.seconds
    ended = os.pidfd_open(process.pid)
    try:
        while not select.select([ended], [], [], _LOOK)[0]:
            if time.monotonic() > until:
                return f"not finished after {limits.seconds:g} s"
            if used(process.pid, limits.memory) > limits.memory:
                return f"more than {limits.memory >> 20} MiB of memory in all its processes"
        return ""
    finally:
        os.close(ended)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
