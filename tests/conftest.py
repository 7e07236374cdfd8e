"""Shared fixtures: one traced step per family and dtype, and weights that reuse it.

Tracing takes seconds and does not depend on the weights. Checkpoints with the same config.json have the same
safetensors header, so they can share one `step.onnx`.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import host_onnx
import host_trt
import interpreter  # before anything imports the kernels
import pytest
import torch
from bundles import export, write_source
from checkpoints import OPENERS, Weights, export_step, random_weights, raw_config, write_checkpoint
from fuzzing import Tally, write_report
from hypothesis import settings
from passes import Passes, settle, until

import dpad
from dpad.runtime.engines.base import Engine
from dpad.runtime.model import DiffusionModel

if TYPE_CHECKING:
    from browsers import Browser
    from servers import Served

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # commands run by tests share the cores with other tests
assert interpreter.DEVICE
# A background job of a shell ignores SIGINT, and its child processes, to which tests send SIGINT, would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run and no deadline, so that failures are reproducible.
settings.register_profile("dpad", derandomize=True, deadline=None, database=None)
settings.load_profile("dpad")

GPU_ENGINES = {"tensorrt": host_trt.opened, "onnxruntime-cuda": host_onnx.opened}

_tallies: list[Tally] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --fuzz-report, the file to which the fuzz tests write their counts."""
    parser.addoption("--fuzz-report", type=Path, help="JSON file of the fuzz tests' counts")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The counts of one fuzz test; they are reported if it passes."""
    counts = Tally(f"{Path(request.node.path).stem}.{getattr(request.node, 'originalname', request.node.name)}")
    yield counts
    _tallies.append(counts)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the counts to --fuzz-report, unless a test failed."""
    path = session.config.getoption("--fuzz-report")
    if path and exitstatus == 0:
        write_report(_tallies, path)


# Builds the checkpoint of a family with its step.onnx: (family, dtype, seed, edit) -> folder.
MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """`make_bundle(family, dtype="float32", seed=0, sharpness=4.0, edit=None)`, cached by its arguments.

    `edit(weights)` changes the random weights in place before they are written.
    """
    steps: dict[tuple[str, str], Path] = {}
    made: dict[tuple[object, ...], Path] = {}

    def make(
        family: str,
        dtype: str = "float32",
        seed: int = 0,
        sharpness: float = 4.0,
        edit: Callable[[Weights], None] | None = None,
    ) -> Path:
        key = (family, dtype, seed, sharpness, edit)
        if key in made:
            return made[key]
        raw = raw_config(family)
        weights = random_weights(raw, seed, getattr(torch, dtype), sharpness)
        if edit is not None:
            edit(weights)
        directory = write_checkpoint(tmp_path_factory.mktemp(family), raw, weights)
        if (family, dtype) in steps:
            for name in ("step.onnx", "decide.onnx"):
                shutil.copyfile(steps[family, dtype].with_name(name), directory / name)
        else:
            steps[family, dtype] = export_step(directory)
        made[key] = directory
        return directory

    return make


@pytest.fixture(scope="session")
def engine_of(make_bundle: MakeBundle) -> Iterator[Callable[..., Engine]]:
    """`engine_of(name, family, **bundle)`, opened once: `torch`, `onnxruntime`, or an engine on a simulated GPU."""
    opened: dict[tuple[str, Path], Engine] = {}
    closing = ExitStack()

    def open_engine(name: str, family: str, **bundle: object) -> Engine:
        directory = make_bundle(family, **bundle)
        if (name, directory) not in opened:
            if name in GPU_ENGINES:
                opened[name, directory] = closing.enter_context(GPU_ENGINES[name](directory))
            else:
                opened[name, directory] = OPENERS[name](directory)
        return opened[name, directory]

    with closing:
        yield open_engine


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle of a random model, which no test may change."""
    folder = tmp_path_factory.mktemp("whole")
    return export(write_source(folder / "source"), folder / "bundle").directory


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole` that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def eval_bundle(whole: Path) -> Path:
    """`whole`, for the tests of evaluation."""
    return whole


@pytest.fixture
def model(engine: Passes) -> Iterator[DiffusionModel]:
    """A model over the module's own `engine`, which records passes; a test must leave no thread and no used slot."""
    with DiffusionModel(engine, None) as model:
        yield model
        engine.gate.set()
        settle(engine)


@pytest.fixture(scope="session")
def endless(whole: Path) -> str:
    """A prompt to which the random model writes at least 200 tokens."""
    options: Any = {"gen_length": 240, "decoder": "fixed", "block_length": 8, "schedule": dpad.Full()}
    with dpad.load(whole, threads=1) as model:
        prompts = (f"w{number} w{number // 7}" for number in range(5, 125))
        return next(each for each in prompts if model.generate(each, raw=True, **options).nfe >= 200)


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """A browser, for tests with the mark `browser`."""
    from browsers import Browser  # needs selenium

    with Browser() as browser:
        yield browser


@pytest.fixture
def page(chromium: "Browser", served: "Served") -> Iterator["Browser"]:
    """The newly loaded page of the module's `served`; a test may cause no error and no request to another origin."""
    chromium.open(served)
    until(lambda: chromium.text("#model"))
    yield chromium
    chromium.check()
