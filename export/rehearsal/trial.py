"""Tries text in a process of its own, since it can abort, hang or eat memory, before this process does it.

    try_text(checkpoint.directory, stage / "tokenizer")     # raises CheckpointError

A tokenizer.json and a chat template are read and run by libraries that were not made for files from strangers: one
aborts the interpreter on some, both can be made to run for ever. The process has a session of its own, limits of
time and memory, and is killed with all that it started. It imports the runtime's text code
(text_check.py) and nothing else of this package, which takes a tenth of a second.
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
MEMORY = 4 << 30  # bytes of address space; the largest published tokenizer takes one
_WALL = 5  # times the seconds of CPU time, for machines that are busy
_OUTPUT = 1 << 20  # bytes that it may write
_TAIL = 16_000  # bytes of what it wrote that are read
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
    """Use the files that were placed in `tokenizer` in another process.

    Raises `CheckpointError` with what it raised or what became of it, naming the file or the checkpoint `source`.
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
    """The exit code of a process that has ended, by itself or by its limits, with all that it started."""
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
    """What became of a process that did not end well."""
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return f"was not done with after {SECONDS} s, or was killed for its memory"
    if code < 0:
        return f"aborts the library that reads it ({signal.Signals(-code).name})"
    return f"cannot be used (exit code {code})"


def _tail(file: IO[bytes]) -> str:
    file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
    return file.read().decode("utf-8", errors="replace").strip()
