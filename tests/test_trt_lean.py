"""Plans for the lean runtime, `tensorrt_lean`: building, choosing, opening and refusing them.

TensorRT-RTX's builder stands in for TensorRT's, which cannot be installed here. The lean runtime is real: its classes
check the simulation that runs the step, and it must itself refuse files that are not its plans.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import host_trt
import numpy as np
import pytest
import test_trt_open as openings
from bundles import deciding, write_source
from checked_trt import Checked
from click.testing import CliRunner
from host_cuda import HostDevice
from host_trt import HostTrt, opened
from test_build import as_tensorrt, no_ops

import dpad
from dpad.cli import main
from dpad.export.engines.recipe import EngineRecipe
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.engines import candidates as found_here
from dpad.runtime.engines.candidates import require_match
from dpad.runtime.engines.gpu import cuda
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.step import StepInputs
from dpad.runtime.engines.tensorrt.engine import open_trt_engine
from dpad.runtime.errors import EngineMismatch, EngineUnavailable, ExportError

pytestmark = no_ops
FLAGS = BuildFlags(version_compatible=True, lean=True)
FITTING = Machine("linux-x86_64", Gpu("test", "8.9"), "")
PLAN = "tensorrt-lean-float16-sm89"
directory = openings.directory


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a lean plan, built by the command line."""
    folder = tmp_path_factory.mktemp("lean")
    options = ["--target", "tensorrt", "--version-compatible", "--lean", "--dtype", "float16", "--no-parity"]
    words = ["export", str(write_source(folder / "source")), "--out", str(folder / "out"), *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", as_tensorrt())
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(Machine, "current", classmethod(lambda cls: FITTING))
        ran = CliRunner().invoke(main, [*words, "--compute-capability", "8.9"])
    assert ran.exit_code == 0, ran.output
    return Bundle.open(folder / "out")


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str | None) -> None:
    """Simulate installed versions of distributions; None is not installed."""
    known = found_here.library_version
    monkeypatch.setattr(
        found_here, "library_version", lambda name: installed[name] if name in installed else known(name)
    )


@pytest.fixture
def device(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    """A machine with a simulated GPU and a simulated lean runtime of the version that built the plan."""
    device, contract = HostDevice(), bundle.manifest.contract
    trt = HostTrt(device, bundle.path("float16/step.onnx"), contract, "float16", decide=deciding(bundle))
    monkeypatch.setitem(sys.modules, "tensorrt_lean", trt)  # type: ignore[arg-type]
    monkeypatch.setattr(Machine, "current", classmethod(lambda cls: FITTING))
    monkeypatch.setattr(cuda, "CudaDevice", lambda: device)
    versions(monkeypatch, **{"tensorrt-lean": bundle.manifest.engines[0].library_version})
    yield device
    assert device.leaks() == []


def inspected(bundle: Bundle) -> dict[str, Any]:
    """The entry of the plan in `dpad inspect`."""
    ran = CliRunner().invoke(main, ["inspect", str(bundle.directory), "--json"])
    assert ran.exit_code == 0, ran.output
    [found] = [engine for engine in json.loads(ran.stdout)["engines"] if engine["engine"] == PLAN]
    return dict(found)


def test_the_lean_runtime_opens_the_plan_without_code_of_its_own(bundle: Bundle, device: HostDevice) -> None:
    """Fails if the full library is needed, host code is allowed without need, or the text differs."""
    [entry] = bundle.manifest.engines
    assert (entry.library, entry.flags, entry.file) == ("tensorrt_lean", FLAGS, f"engines/{PLAN[:14]}sm89-float16.plan")
    assert {"--lean", "--version-compatible"} <= {*bundle.manifest.provenance["arguments"]}
    assert inspected(bundle)["chosen"] is True
    drawn: dict[str, Any] = {"gen_length": 32, "temperature": 0.7, "seed": 3}
    with dpad.load(bundle.directory, slots=1000, warm=False) as model:
        assert model.engine.name == PLAN
        assert sys.modules["tensorrt_lean"].runtime.engine_host_code_allowed is False
        ours = model.generate("w5 w6 w7", **drawn)
    contract, decide = bundle.manifest.contract, bundle.path(bundle.manifest.decide)
    with OnnxEngine(bundle.path("float16/step.onnx"), contract, "float16", decide=decide) as engine:
        theirs = dpad.DiffusionModel(engine, model.codec).generate("w5 w6 w7", **drawn)
    assert (ours.token_ids, ours.nfe) == (theirs.token_ids, theirs.nfe)


def test_later_runtimes_open_it_and_others_are_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a compatible runtime is refused, an incompatible one is tried, or the error lacks the way out."""
    entry = replace(bundle.manifest.engines[0], library_version="11.4.0.106")
    for version in ("11.4.0.106", "11.5.0.1"):
        versions(monkeypatch, **{"tensorrt-lean": version})
        require_match(entry, bundle, FITTING)
    for version in ("11.3.0.99", "12.0.0.1", "10.16.1.11"):
        versions(monkeypatch, **{"tensorrt-lean": version})
        with pytest.raises(
            EngineMismatch, match=rf"'11.4.0.106' in .*'{version}' here; install that one or a later one"
        ):
            require_match(entry, bundle, FITTING)


def test_without_the_runtime_its_extra_is_named(
    bundle: Bundle, device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the error names the extra of the full library."""
    versions(monkeypatch, **{"tensorrt-lean": None})
    told = "tensorrt-lean is not installed (pip install '.[tensorrt-lean]' in a checkout of dpad)"
    assert inspected(bundle)["obstacle"] == told
    with pytest.raises(EngineUnavailable, match=r"pip install '\.\[tensorrt-lean\]' in"):
        dpad.load(bundle.directory, engine=PLAN)


def test_plans_that_it_cannot_run_are_refused(bundle: Bundle) -> None:
    """Fails if an export makes a plan that the lean runtime cannot open, or a plan without weights is tried."""
    for recipe, words in (
        (
            EngineRecipe(("tensorrt",), (), (), flags=BuildFlags(lean=True)),
            "--lean needs --version-compatible",
        ),
        (EngineRecipe(("tensorrt",), (), (), "plugin", FLAGS), "does not document plugins in its lean runtime"),
        (EngineRecipe(("tensorrt",), (), (), flags=replace(FLAGS, strip_weights=True)), "leave --strip-weights out"),
        (EngineRecipe(("tensorrt-rtx",), (), (), flags=FLAGS), "tensorrt-rtx: its package has no lean runtime"),
    ):
        with pytest.raises(ExportError, match=words):
            recipe.check()
    stripped = replace(bundle.manifest.engines[0], flags=replace(FLAGS, strip_weights=True))
    with pytest.raises(
        EngineMismatch, match="has no weights, and the lean runtime cannot .* no refitter; export without"
    ):
        require_match(stripped, bundle, FITTING)


@pytest.fixture(scope="module")
def lean() -> ModuleType:
    """The real lean runtime."""
    reason = "the lean runtime is not installed: pip install '.[tensorrt-lean]'"
    module: ModuleType = pytest.importorskip("tensorrt_lean", reason=reason)
    return module


def test_the_real_classes_have_what_is_asked_of_them(
    lean: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if opening, running, recording or refusing a plan makes a call that the lean runtime refuses."""
    used: set[str] = set()

    def checked(trt: HostTrt, *arguments: Any, **settings: Any) -> Any:
        return open_trt_engine(Checked(trt, lean, used=used), *arguments, **settings)

    for module in (host_trt, openings):
        monkeypatch.setattr(module, "open_trt_engine", checked)
    canvas, empty = np.full((1, 8), 5), np.empty((1, 0), dtype=np.int64)
    with opened(directory) as engine:
        for _ in range(3):
            engine.step(StepInputs(canvas, np.arange(8)[None], empty, np.zeros_like(canvas)))
    assert {"IExecutionContext.execute_async_v3", "Runtime.deserialize_cuda_engine"} <= used
    openings.test_a_plan_that_cannot_be_opened_says_why(directory)
    openings.test_the_plan_that_decides_is_checked_too(directory)


OPEN = """
import sys
import tensorrt_lean
from pathlib import Path
from host_cuda import HostDevice
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines.tensorrt.engine import open_trt_engine
from dpad.runtime.errors import EngineError
contract, device = Bundle.open(Path(sys.argv[1])).manifest.contract, HostDevice()
try:
    open_trt_engine(tensorrt_lean, Path(sys.argv[2]), contract, "float16", device)
except EngineError as error:
    print(type(error).__name__, error)
assert device.closed and device.leaks() == []
"""


@pytest.mark.parametrize("what", ["garbage", "cut", "another library's"])
def test_the_real_runtime_s_own_words_come_out(lean: ModuleType, bundle: Bundle, tmp_path: Path, what: str) -> None:
    """Fails if a plan that cannot be opened crashes the process, as the bindings do if the runtime does not start.

    Without a GPU the message is about the runtime's start; with one it says that the file is not a plan.
    """
    plan, foreign = tmp_path / "x.plan", bundle.path(bundle.manifest.engines[0].file).read_bytes()
    plan.write_bytes({"garbage": b"garbage" * 100, "cut": foreign[:500], "another library's": foreign}[what])
    words = [sys.executable, "-c", OPEN, str(bundle.directory), str(plan)]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"EngineError {plan} cannot be "), ran.stdout
    if Machine.current().gpu is None:
        assert "CUDA driver version is insufficient for CUDA runtime version" in ran.stdout
    else:
        assert "Serialization" in ran.stdout
