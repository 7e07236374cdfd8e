"""A bundle's plan through the public interface: inspect, opening, decoding and parity.

The GPU, CUDA and TensorRT-RTX's runtime are simulated (`host_trt.py`); the plan in the bundle is real and built here.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, export, write_source
from click.testing import CliRunner
from host_cuda import HostDevice
from host_machine import installed

import dpad
from dpad.cli import main
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.progress import Progress
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines import candidates as found_here
from dpad.runtime.engines.gpu import cuda
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.errors import EngineError, EngineUnavailable

PLAN = "tensorrt-rtx-float16-sm89"
DRAWN: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "seed": 3}
FITTING = Machine("linux-x86_64", Gpu("test", "8.9"), "")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("select")
    settings: dict[str, Any] = {"dtypes": ("float16",), "capabilities": ("8.9",)}
    return export(write_source(folder / "source"), folder / "out", targets=("tensorrt-rtx",), **settings)


@pytest.fixture
def device(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    """The simulated GPU of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with installed(bundle, "8.9", monkeypatch) as device:
        yield device


def inspect(bundle: Bundle) -> dict[str, Any]:
    """The output of `dpad inspect` for each engine."""
    ran = CliRunner().invoke(main, ["inspect", str(bundle.directory), "--json"])
    assert ran.exit_code == 0, ran.output
    return {engine["engine"]: engine for engine in json.loads(ran.stdout)["engines"]}


def test_the_plan_is_the_engine_of_choice_where_it_fits(bundle: Bundle, device: HostDevice) -> None:
    """Fails if a plan that fits is not opened, or gives another text than the step."""
    assert inspect(bundle)[PLAN]["runs_here"] is True
    with dpad.load(bundle.directory, slots=1000) as model:
        assert isinstance(model.engine, GpuEngine) and model.engine.name == PLAN
        assert device.counts["alloc"] > 0
        assert model.engine.slots.size == 1000
        ours = [model.generate("w5 w6 w7", gen_length=64, cache="dual", **each) for each in ({}, DRAWN)]
    assert device.closed
    decide = bundle.path(bundle.manifest.decide)
    with OnnxEngine(bundle.path("float16/step.onnx"), bundle.manifest.contract, "float16", decide=decide) as engine:
        model = dpad.DiffusionModel(engine, model.codec)
        theirs = [model.generate("w5 w6 w7", gen_length=64, cache="dual", **each) for each in ({}, DRAWN)]
    assert [(a.token_ids, a.nfe) for a in ours] == [(b.token_ids, b.nfe) for b in theirs]


@pytest.mark.parametrize("flag", ["strip_weights", "version_compatible", "workspace"])
def test_how_a_plan_was_built_decides_how_it_is_opened(
    bundle: Bundle, device: HostDevice, tmp_path: Path, flag: str
) -> None:
    """Fails if a stripped plan is not refitted, or host code is allowed for a plan that does not need it."""
    directory = Path(shutil.copytree(bundle.directory, tmp_path / "out"))
    edit(directory, lambda data: data["engines"][0]["flags"].update({flag: 64 if flag == "workspace" else True}))
    dpad.load(directory).close()
    trt: Any = sys.modules["tensorrt_rtx"]
    assert trt.refitted_from == ([str(directory / "float16/step.onnx")] if flag == "strip_weights" else [])
    assert trt.runtime.engine_host_code_allowed == (flag == "version_compatible")


def test_compiled_kernels_are_kept_under_the_plan(bundle: Bundle, device: HostDevice, tmp_path: Path) -> None:
    """Fails if two plans share one cache of kernels."""
    dpad.load(bundle.directory).close()
    sha = bundle.manifest.files[bundle.manifest.engines[0].file].sha256
    names = {f"kernels-{sha[:32]}.cache", f"decide-kernels-{sha[:32]}.cache"}
    assert {path.name for path in (tmp_path / "cache/dpad").iterdir()} == names


def test_parity_compares_the_plan_itself(bundle: Bundle, device: HostDevice) -> None:
    """Fails if a plan passes parity without running, or one of its outputs is not compared."""
    report = require_passed(compare_bundle(bundle, Progress(), engines=[PLAN], steps=1))
    [engine] = report["engines"]
    assert engine["status"] == "passed" and engine["file"].endswith(".plan")
    assert set(engine["steps"]) == {"odds_against", "logits", "new_key", "new_value"}
    assert engine["trajectories"]["positions"] > 0
    assert device.counts["upload"] > 100


def test_parity_compares_a_bfloat16_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a bfloat16 plan, whose dtype numpy lacks, is skipped or its rows are misread."""
    settings: dict[str, Any] = {"dtypes": ("float32", "bfloat16"), "capabilities": ("8.9",)}
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", targets=("tensorrt-rtx",), **settings)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = PLAN.replace("float16", "bfloat16")
    with installed(bundle, "8.9", monkeypatch, "bfloat16", computed="float32"):
        [engine] = require_passed(compare_bundle(bundle, Progress(), engines=[name], steps=1))["engines"]
    assert engine["status"] == "passed" and engine["trajectories"]["positions"] > 0
    assert engine["steps"]["new_key"]["max_abs"] > 0


@pytest.mark.parametrize("missing", ["tensorrt-rtx", "cuda-bindings"])
def test_what_is_not_installed_is_named(
    bundle: Bundle, device: HostDevice, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Fails if a missing package gives a traceback, or the error does not say how to install it."""
    version = found_here.library_version
    monkeypatch.setattr(found_here, "library_version", lambda name: None if name == missing else version(name))
    engine = inspect(bundle)[PLAN]
    assert engine["obstacle"] == f"{missing} is not installed (pip install '.[rtx]' in a checkout of dpad)"
    with pytest.raises(EngineUnavailable, match=rf"{missing} is not installed \(pip install '\.\[rtx\]' in"):
        dpad.load(bundle.directory, engine=PLAN)


def test_a_real_plan_without_a_driver_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails if the error lacks TensorRT-RTX's message when it cannot open its plan."""
    if Machine.current().gpu is not None:
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(Machine, "current", classmethod(lambda cls: FITTING))
    with pytest.raises(EngineError, match="cudaErrorInsufficientDriver"):
        dpad.load(bundle.directory, engine=PLAN)
    device = HostDevice()
    monkeypatch.setattr(cuda, "CudaDevice", lambda: device)
    with pytest.raises(EngineError, match=r"engines/.*\.plan cannot .*CUDA driver version is insufficient"):
        dpad.load(bundle.directory, engine=PLAN)
    assert device.closed and device.leaks() == []


def test_the_command_line_takes_the_options_of_engines(tmp_path: Path) -> None:
    """Fails if an option is missing in the engine's key, or a refusal has no reason."""
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    command = ["export", str(source), "--out", str(out), "--no-parity", "--dtype", "float16"]
    rtx = ["--target", "tensorrt-rtx", "--compute-capability", "8.9"]
    ran = CliRunner().invoke(main, [*command, *rtx, "--workspace", "64", "--json"])
    assert ran.exit_code == 0, ran.output
    [engine] = json.loads(ran.stdout)["manifest"]["engines"]
    assert engine["flags"] == {
        "strip_weights": False,
        "hardware_compatible": False,
        "version_compatible": False,
        "lean": False,
        "workspace": 64,
    }
    assert (engine["attention"], engine["plugin_version"], engine["onnx"]) == ("native", "", "float16/step.onnx")
    for option, words in (
        (["--attention", "plugin"], "it takes no plugins"),
        (["--hardware-compatible"], "repeat --compute-capability instead"),
        (["--version-compatible"], "no lean runtime"),
    ):
        ran = CliRunner().invoke(main, [*command, *rtx, *option])
        assert ran.exit_code == 1
        assert words in ran.stderr and "ExportError" in ran.stderr
    for option in (["--attention", "flash"], ["--workspace", "0"]):
        assert CliRunner().invoke(main, [*command, *rtx, *option]).exit_code == 2
