"""Common parts of the benchmarks: timing in turns, spreads, memory, the bundle, and the JSON document at the end.

seconds = interleaved({"step": timed(step), "floor": timed(floor)}, rounds=15)
spread(seconds["step"]), paired(seconds["step"], seconds["floor"])
"""

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import click
import numpy as np

from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.hashes import sha256
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.machine import library_version
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import DpadError
from dpad.runtime.model import DiffusionModel

T = TypeVar("T")
P = ParamSpec("P")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

CORES = os.cpu_count() or 1
_MODELS, _WEIGHTS = Path(__file__).resolve().parent.parent / "models", ".safetensors"
_LIBRARIES = ("dpad", "numpy", "onnxruntime", "torch", "tokenizers")

out_option = click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the JSON here.")
bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), default="bundles/tiny", show_default=True, help="Bundle to measure."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=CORES, show_default=True, help="CPU threads."
)
rounds_option = click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Timed rounds, after one to warm up."
)


def own_bundle(command: Decorated) -> Decorated:
    """Add `--bundle` and `--model` to a benchmark that needs a bundle with its own limits; see `bundle_for`."""
    model = click.option("--model", default="tiny", show_default=True, help="Checkpoint to export, as `dpad export`.")
    bundle = click.option(
        "--bundle", type=click.Path(path_type=Path), help="Bundle to measure. Default: export --model."
    )
    return bundle(model(command))


class Benchmark(click.Command):
    """A command that reports this project's errors in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `DpadError` becomes a message and exit status 1."""
        try:
            return super().invoke(ctx)
        except DpadError as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from error


def interleaved(calls: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call all `calls` in turn in each round, starting with another one each time; returns their results by name.

    An additional first round is for warm-up; its results are dropped.
    """
    names = list(calls)
    results: dict[str, list[T]] = {name: [] for name in names}
    for index in range(rounds + 1):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            result = calls[name]()
            if index:
                results[name].append(result)
    return results


def timed(call: Callable[[], object], repeat: int = 1, pause: float = 0.0) -> Callable[[], float]:
    """A function that returns the seconds of `call`: the median of `repeat` runs, after `pause` idle seconds.

    ONNX Runtime's threads spin for a while after a run. During the pause those of the previous contender go to sleep,
    so that they do not use the cores of the next one.
    """

    def run() -> float:
        time.sleep(pause)
        seconds = []
        for _ in range(repeat):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds))

    return run


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles with four significant digits, in the unit of `values`."""
    q1, middle, q3 = (digits(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": middle, "q1": q1, "q3": q3}


def paired(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios of two contenders in each round, in which slow drift of the machine cancels out."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def digits(value: float) -> float:
    """`value` rounded to four significant digits."""
    return float(f"{value:.4g}")


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes.

    It is read from /proc, because `ru_maxrss` of a new process starts at the peak of its parent.
    """
    return _status("VmHWM")


def own_memory() -> int:
    """Resident memory of this process now that is not mapped from a file, in bytes."""
    return _status("RssAnon")


class OwnPeak:
    """A context that samples `own_memory` ten times a second; afterwards `bytes` is the largest value."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, own_memory())
            if self._over.wait(0.1):
                return


def memory_of(process: int) -> int:
    """Resident memory of another process now, in bytes."""
    return _status("VmRSS", str(process))


def _status(field: str, process: str = "self") -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        raise click.ClickException("memory is read from /proc/self/status, which only Linux has") from None
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def in_child(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of `function` in a fresh process; `BrokenProcessPool` if that process was killed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


class Watched(Engine):
    """An engine that calls `see` with the inputs of every step before it runs the step.

    Attributes:
        seconds: time inside `Engine.step` so far.
    """

    def __init__(self, engine: Engine, see: Callable[[StepInputs], object] = lambda inputs: None) -> None:
        super().__init__()
        self.name, self.contract, self.dtype, self.slots = engine.name, engine.contract, engine.dtype, engine.slots
        self.pass_rows, self.most_rows = engine.pass_rows, engine.most_rows
        self.seconds = 0.0
        self._engine, self._see = engine, see

    def step(self, inputs: StepInputs) -> StepOutputs:
        """Run the engine's step, after `see` and with its time measured."""
        self._see(inputs)
        began = time.perf_counter()
        outputs = self._step(inputs)
        self.seconds += time.perf_counter() - began
        return outputs

    def _step(self, inputs: StepInputs) -> StepOutputs:
        return self._engine.step(inputs)

    def padded(self, axis: str, size: int) -> int:
        """The padded size of the watched engine."""
        return self._engine.padded(axis, size)


def over(model: DiffusionModel, engine: Engine) -> DiffusionModel:
    """A model with the tokenizer and presets of `model` and another engine."""
    return DiffusionModel(engine, model.codec if model.has_tokenizer else None, model.presets)


@contextmanager
def bundle_for(
    bundle: Path | None, model: str, max_batch: int, max_length: int, *, w8a8: bool = False
) -> Iterator[Path]:
    """`bundle`, or else a temporary float32 (and w8a8) export of `model` with these limits."""
    if bundle is not None:
        yield bundle
        return
    from dpad.commands.terminal import TerminalProgress
    from dpad.export.pipeline import export_bundle
    from dpad.export.settings import ExportSettings

    settings = ExportSettings(
        dtypes=("float32", *(["w8a8"] if w8a8 else [])), max_batch=max_batch, max_length=max_length
    )
    with tempfile.TemporaryDirectory() as folder:
        yield export_bundle(model, Path(folder) / "bundle", settings, TerminalProgress())[0].directory


def model_facts(*directories: Path) -> dict[str, Any]:
    """The names of these bundles' models, and SHA-256 of the weight files from which they were made."""
    manifests = [Bundle.open(directory, hashes=False).manifest for directory in directories]
    files = {one.name: one.provenance["source_files"].items() for one in manifests}
    hashes = {name: {file: sha for file, sha in found if file.endswith(_WEIGHTS)} for name, found in files.items()}
    return {"model": " and ".join(hashes), "weights_sha256": hashes}


def shipped(model: str) -> dict[str, str]:
    """SHA-256 of the current weight files of an embedded model; empty for any other model."""
    return {file.name: sha256(file) for file in sorted((_MODELS / model).glob(f"*{_WEIGHTS}"))}


def machine() -> dict[str, Any]:
    """Processor, cores, platform and library versions."""
    return {
        "cpu": _cpu(),
        "cores": CORES,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: library_version(name) for name in _LIBRARIES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def publish(document: dict[str, Any], out: Path | None) -> None:
    """Print `document` as the last line, and write it, indented, to `out`."""
    store(document, out)
    click.echo(json.dumps(document))


def store(document: dict[str, Any], out: Path | None) -> None:
    """Write `document` to `out`; long benchmarks do so after every part, so that a stopped run leaves its results."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def say(message: str) -> None:
    """Print one line of progress to standard error."""
    click.echo(message, err=True)
