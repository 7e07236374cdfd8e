"""TensorRT-RTX's portable plan, which runs on all GPUs that it supports, and messages about other GPUs."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from bundles import write_source
from click.testing import CliRunner
from host_cuda import HostDevice
from host_machine import installed

import dpad
from dpad.cli import main
from dpad.export.engines.recipe import EngineRecipe
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines.candidates import candidates, require_match
from dpad.runtime.engines.capability import PORTABLE
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.select import chosen_from
from dpad.runtime.errors import EngineBuildError, EngineMismatch

TAKEN = ("8.0", "8.6", "8.9", "12.0", "12.1", "13.0")  # the list of TensorRT-RTX 1.7.1 for a plan without a target
PLAN = "tensorrt-rtx-float16-portable"


def machine(capability: str) -> Machine:
    return Machine("linux-x86_64", Gpu("a GPU", capability), "")


class Told(Progress):
    """Records the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """A bundle exported with the default capability on a machine with a Hopper GPU, and the export's messages."""
    folder, told = tmp_path_factory.mktemp("rtx"), Told()
    settings = ExportSettings(targets=("tensorrt-rtx",), dtypes=("float16",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "current", classmethod(lambda cls: machine("9.0")))
        bundle, _ = export_bundle(str(write_source(folder / "source")), folder / "out", settings, told)
    return bundle, told.lines


@pytest.fixture(scope="module")
def bundle(made: tuple[Bundle, list[str]]) -> Bundle:
    return made[0]


def test_one_plan_is_built_for_all_gpus_unless_one_is_named(bundle: Bundle) -> None:
    """Fails if the plan of `make export` is not portable, or --compute-capability is ignored."""
    [entry] = bundle.manifest.engines
    assert (entry.compute_capability, entry.file) == (PORTABLE, "engines/tensorrt-rtx-portable-float16.plan")
    assert entry.library_version == tensorrt_rtx.__version__
    assert bundle.path(entry.file).stat().st_size > 10_000
    settings = ExportSettings(targets=("tensorrt-rtx",), dtypes=("float16",), capabilities=("8.9", PORTABLE))
    assert settings.recipe().compiled() == {"tensorrt-rtx": ("8.9", PORTABLE)}
    settings.recipe().check_builders()
    assert {"--compute-capability=8.9", "--compute-capability=portable"} <= {*settings.arguments()}


def test_an_export_on_hopper_says_what_runs_there(made: tuple[Bundle, list[str]]) -> None:
    """Fails if an export on an H100 does not report that the plan is for other machines."""
    [line] = [line for line in made[1] if "TensorRT-RTX does not run on compute capability 9.0" in line]
    assert line.startswith("a GPU: ")
    assert line.endswith(
        "; use engine torch-cuda, which needs no plan, or export with --target tensorrt instead of tensorrt-rtx"
    )


@pytest.mark.parametrize("capability", TAKEN)
def test_it_is_chosen_on_every_gpu_that_it_takes(bundle: Bundle, capability: str) -> None:
    """Fails if a portable plan is refused, or not preferred, on a GPU that it supports."""
    require_match(bundle.manifest.engines[0], bundle, machine(capability))
    chosen = chosen_from(bundle, candidates(bundle, machine(capability)))
    assert chosen is not None and chosen.name == PLAN


def test_where_it_does_not_fit_the_way_out_is_named(bundle: Bundle) -> None:
    """Fails if the error for a GPU that TensorRT-RTX does not support suggests an export for it."""
    [entry] = bundle.manifest.engines
    with pytest.raises(EngineMismatch, match="compute_capability is 'portable' .*--compute-capability=7.5"):
        require_match(entry, bundle, machine("7.5"))
    for capability in ("9.0", "10.0"):
        for plan in (entry, replace(entry, compute_capability=capability)):
            with pytest.raises(EngineMismatch, match=rf"run on compute capability {capability}.*use engine torch-cuda"):
                require_match(plan, bundle, machine(capability))
    with pytest.raises(
        EngineMismatch, match=r"library_version is '1\.0' .*--target=tensorrt-rtx((?!--comp).)* --force$"
    ):
        require_match(replace(entry, library_version="1.0"), bundle, machine("8.6"))


def test_each_target_has_a_default_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an export for both libraries passes one library's default to the other."""
    monkeypatch.setattr(Machine, "current", classmethod(lambda cls: machine("9.0")))
    both = ("onnx", "tensorrt-rtx", "tensorrt")
    assert EngineRecipe(both, ("float16",), ()).compiled() == {"tensorrt-rtx": (PORTABLE,), "tensorrt": ("9.0",)}
    assert EngineRecipe(both, ("float16",), ("8.9",)).compiled() == {"tensorrt-rtx": ("8.9",), "tensorrt": ("8.9",)}
    tensorrt: Any = type(sys)("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    with pytest.raises(EngineBuildError, match=r"tensorrt cannot target compute capability portable \(it knows 9.0\)"):
        EngineRecipe(("tensorrt",), ("float16",), (PORTABLE,)).check_builders()


@pytest.fixture
def device(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDevice]:
    """The simulated GPU of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with installed(bundle, "12.0", monkeypatch) as device:
        yield device


def test_a_service_keeps_its_kernels_before_the_first_request(
    bundle: Bundle, device: HostDevice, tmp_path: Path
) -> None:
    """Fails if compiled kernels are saved only when the engine is closed, so that a killed process loses them."""
    with dpad.load(bundle.directory, slots=1000) as model:
        assert model.engine.name == PLAN
        assert len(list((tmp_path / "cache/dpad").iterdir())) == 2


def test_a_report_tells_one_plan_from_another(bundle: Bundle, tmp_path: Path) -> None:
    """Fails if a report lacks a plan's key, its hash, or its obstacle."""
    place, [entry] = tmp_path / "report.txt", bundle.manifest.engines
    ran = CliRunner().invoke(main, ["report", "--to", str(place), "inspect", str(bundle.directory)])
    assert ran.exit_code == 0, ran.output
    text = place.read_text()
    [line] = [line for line in text.splitlines() if line.startswith(f"{entry.file} ")]
    _, sha256, key = line.split(" ", 2)
    assert sha256 == bundle.manifest.files[entry.file].sha256
    assert json.loads(key) == json.loads(json.dumps(entry.key()))
    assert f"{PLAN}: " in text and f"tensorrt-rtx {tensorrt_rtx.__version__}\n" in text
