"""Tries a tokenizer and a chat template in a process of its own, since they can abort, hang or exhaust memory.

    try_text(checkpoint.directory, stage / "tokenizer")     # raises CheckpointError

The libraries that read a tokenizer.json and run a chat template are not made for untrusted files: tokenizers aborts the
interpreter on some, and both can run forever. The process has a session of its own and limits of time and memory, and
it is killed together with its children. It imports text_check.py and the runtime's text code only, which takes a tenth
of a second.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from dpad.export.rehearsal.text_check import REFUSED
from dpad.runtime.errors import CheckpointError, ExportError

SECONDS = 60  # of CPU time; the largest published tokenizer takes 5
MEMORY = 4 << 30  # bytes of address space; the largest published tokenizer takes 1 GiB
_WALL = 5  # limit of wall time, as a multiple of SECONDS, for busy machines
_OUTPUT = 1 << 20  # bytes that the process may write
_TAIL = 16_000  # bytes of its output that are read
_PACKAGE = Path(__file__).parents[2]
_START = """
import sys, json, resource, types
modules, package, seconds, memory, output, arguments = json.loads(sys.argv[1])
for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, output)):
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (most if hard == -1 else min(most, hard),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path[:] = modules
dpad = sys.modules["dpad"] = types.ModuleType("dpad")  # without all that the package itself imports
dpad.__path__ = [package]
from dpad.export.rehearsal.text_check import serve
serve(*arguments)
"""


def try_text(source: Path, tokenizer: Path) -> None:
    """Use the files in `tokenizer` in another process.

    Raises `CheckpointError` with that process's error, or with how it ended; it names the file or the checkpoint
    `source`.
    """
    modules = [os.path.abspath(path) for path in sys.path]
    settings = [modules, str(_PACKAGE.absolute()), SECONDS, MEMORY, _OUTPUT, [str(source), str(tokenizer)]]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        code = _run([sys.executable, "-I", "-B", "-c", _START, json.dumps(settings)], said, errors)
        refused, words = _tail(said), _tail(errors)
    if refused.startswith(REFUSED):
        raise CheckpointError(refused.removeprefix(REFUSED))
    if code:
        told = [line for line in words.splitlines() if line.strip() and "RUST_BACKTRACE" not in line][-2:]
        raise CheckpointError(
            f"{source}: its tokenizer.json or chat template {_fate(code)}{': ' * bool(told)}{' '.join(told)}"
        )


def _run(command: list[str], said: IO[bytes], errors: IO[bytes]) -> int:
    """Run `command` until it ends or exceeds its limits, kill its children, and return its exit code."""
    quiet = {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false"}
    try:
        process = subprocess.Popen(  # noqa: S603
            command,
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
    except OSError as error:
        raise ExportError(f"no process can be started to try the tokenizer in: {error}") from error
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS * _WALL)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code


def _fate(code: int) -> str:
    """How a process failed, as the end of a sentence, from its exit code."""
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return f"took more than {SECONDS} s or was killed for its memory"
    if code < 0:
        return f"aborts the library that reads it ({signal.Signals(-code).name})"
    return f"cannot be used (exit code {code})"


def _tail(file: IO[bytes]) -> str:
    file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
    return file.read().decode("utf-8", errors="replace").strip()
