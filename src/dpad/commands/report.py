"""`dpad report COMMAND ...` runs a command of dpad and writes a report of everything that may explain a failure.

The command runs in its own process, so that a command that is killed, or crashes inside a library, is reported too.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from dpad import __version__
from dpad.commands.lines import say
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FILE_NAME
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.machine import Machine, library_version
from dpad.runtime.engines.tensorrt.log import LOG_FILE
from dpad.runtime.errors import DpadError
from dpad.runtime.show import escaped

_PACKAGES = (
    *(
        "numpy",
        "onnxruntime",
        "onnxruntime-gpu",
        "tokenizers",
        "torch",
        "triton",
        "onnx",
        "polygraphy",
        "cuda-bindings",
    ),
    *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-lean", "tensorrt-lean-cu13", "tensorrt-rtx"),
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_MODULE_LOADING", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "XDG_CACHE_HOME")
_LINES = 20_000  # lines of output and of the log that are kept, the last ones
_SHELL = 128  # a shell reports a program ended by a signal with this plus the signal's number


@click.command("report", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--to",
    default="dpad-report.txt",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the report; an existing one is replaced.",
)
@click.argument("words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, to: Path, words: tuple[str, ...]) -> None:
    """Run `dpad COMMAND...` and write a report: versions, machine, keys of plans, output, TensorRT's log.

    Put it before a command that fails: `dpad report generate bundles/llada "Hi"`. Exits with that command's status.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dpad-report-") as folder:
        log = Path(folder) / "log.txt"
        status, output = _run(words, log)
        logged = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    sections = {
        "dpad report": [
            f"dpad {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            f"dpad {' '.join(words)}",
            f"{ended}, {time.perf_counter() - began:.1f} s",
        ],
        "Machine": [*_machine()],
        "Packages": [f"{name} {version}" for name in _PACKAGES if (version := library_version(name))],
        "Environment": [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ],
        **{f"Bundle {directory}": [*_bundle(directory)] for directory in _directories(words)},
        "Output": output,
        "Log of TensorRT": logged[-_LINES:] or ["empty: no plan was built or opened"],
    }
    text = "\n\n".join("\n".join([f"# {title}", *lines]) for title, lines in sections.items())
    to.write_text(f"{text}\n", encoding="utf-8", errors="replace")
    say(f"{to}: {to.stat().st_size / 1e3:.0f} kB; read it before you send it: it holds paths and everything printed")
    context.exit(_SHELL - status if status < 0 else status)


def _run(words: Sequence[str], log: Path) -> tuple[int, list[str]]:
    """Run `dpad WORDS` and show its output; returns its exit status, negative for a signal, and its last lines."""
    environment = {**os.environ, LOG_FILE: str(log), "PYTHONFAULTHANDLER": "1"}
    line = [sys.executable, "-P", "-m", "dpad", *words]
    kept: deque[str] = deque(maxlen=_LINES)
    with subprocess.Popen(  # noqa: S603
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for told in process.stdout:
            kept.append(told.rstrip("\n"))
            say(escaped(kept[-1]))
    return process.returncode, [*kept]


def _machine() -> Iterator[str]:
    machine = Machine.current()
    yield f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors"
    yield (
        f"{machine.gpu.name}, compute capability {machine.gpu.compute_capability}"
        if machine.gpu
        else machine.why_no_gpu
    )
    if tool := shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.SubprocessError):
            yield from subprocess.run([tool], capture_output=True, text=True, timeout=30).stdout.splitlines()  # noqa: S603


def _directories(words: Sequence[str]) -> list[Path]:
    """The bundles among a command's arguments and the values of its options."""
    found = []
    for word in words:
        with suppress(OSError, ValueError):  # raised for words that cannot be the name of a file
            directory = Path(word.partition("=")[2] if word.startswith("--") else word)
            if word and (directory / FILE_NAME).is_file() and directory not in found:
                found.append(directory)
    return found


def _bundle(directory: Path) -> Iterator[str]:
    """Lines about a bundle: the engines that run here and those that do not, and the keys of its plans."""
    try:
        bundle = Bundle.open(directory, hashes=False)
        yield f"made with {json.dumps(bundle.manifest.provenance.get('versions'))}"
        yield f"contract {json.dumps(vars(bundle.manifest.contract))}"
        for candidate in candidates(bundle, Machine.current()):
            yield f"{candidate.name}: {candidate.obstacle or 'runs here'}"
        for entry in bundle.manifest.engines:
            yield f"{entry.file} {bundle.manifest.files[entry.file].sha256} {json.dumps(entry.key())}"
    except (DpadError, OSError) as error:
        yield f"{type(error).__name__}: {error}"
