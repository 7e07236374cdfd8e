"""Options of compiled engines: which reach the builder, which are refused, and which are part of an engine's key.

TensorRT-RTX builds on a CPU. For full TensorRT, which cannot be installed here, TensorRT-RTX's module is used under its
name.
"""

import json
import shutil
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx
from bundles import export, write_source

from dpad.export.engines import timing
from dpad.export.engines.plan import build_plan, network_flags, set_flags
from dpad.export.engines.recipe import EngineRecipe
from dpad.export.engines.timing import TimingCache
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.engines import user_cache
from dpad.runtime.engines.candidates import require_match
from dpad.runtime.engines.machine import Gpu, Machine

# TensorRT-RTX warns that its timing caches have no effect; here they stand for TensorRT's, which have.
no_ops = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
FITTING = Machine("linux-x86_64", Gpu("test", "8.9"), "")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "out"
    flags = BuildFlags(workspace=64)
    return export(source, out, targets=("tensorrt-rtx",), dtypes=("float16",), capabilities=("8.9",), flags=flags)


def as_tensorrt() -> ModuleType:
    """TensorRT-RTX's module under the name of TensorRT."""
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # torch looks for it
    for name in dir(tensorrt_rtx):
        if not name.startswith("__") or name == "__version__":
            setattr(module, name, getattr(tensorrt_rtx, name))
    return module


def test_flags_reach_the_builder() -> None:
    """Fails if an option of the command line does not reach the builder."""
    kinds = tensorrt_rtx.BuilderFlag
    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger())
    plain, full = builder.create_builder_config(), builder.create_builder_config()
    set_flags(tensorrt_rtx, plain, BuildFlags())
    set_flags(tensorrt_rtx, full, BuildFlags(True, True, True, True, workspace=3))
    for flag in (kinds.STRIP_PLAN, kinds.REFIT_IDENTICAL, kinds.VERSION_COMPATIBLE, kinds.EXCLUDE_LEAN_RUNTIME):
        assert full.get_flag(flag) and not plain.get_flag(flag)
    recorded = SimpleNamespace()  # TensorRT-RTX's own configuration ignores the level
    set_flags(tensorrt_rtx, recorded, BuildFlags(hardware_compatible=True))
    assert recorded.hardware_compatibility_level == tensorrt_rtx.HardwareCompatibilityLevel.AMPERE_PLUS
    assert full.get_memory_pool_limit(tensorrt_rtx.MemoryPoolType.WORKSPACE) == 3 << 20


def test_networks_are_strongly_typed_and_plugins_compiled_ahead() -> None:
    """Fails if TensorRT 10 can choose another dtype than the file's, or plugins are not compiled ahead of time."""

    class Flags:
        STRONGLY_TYPED, PREFER_AOT_PYTHON_PLUGINS = 1, 3

    trt = ModuleType("tensorrt")
    trt.NetworkDefinitionCreationFlag = Flags  # type: ignore[attr-defined]
    assert network_flags(trt, "native") == 0b0010
    assert network_flags(trt, "plugin") == 0b1010
    trt.NetworkDefinitionCreationFlag = object  # type: ignore[attr-defined]
    assert network_flags(trt, "native") == 0


def test_a_workspace_too_small_is_named(bundle: Bundle) -> None:
    """Fails if the limit does not reach the builder, or its error does not name the option."""
    step, contract = bundle.path("float16/step.onnx"), bundle.manifest.contract
    with pytest.raises(errors.EngineBuildError, match=r"(?s)--workspace limits it to 1 MiB"):
        build_plan(tensorrt_rtx, step, contract, "float16", "8.9", Progress(), BuildFlags(workspace=1))


def test_stripped_plans_are_small_or_say_what_they_need(bundle: Bundle) -> None:
    """Fails if weights stay in a stripped plan, or if the error for a machine without a GPU lacks the way out."""
    step, contract = bundle.path("float16/step.onnx"), bundle.manifest.contract

    def strip() -> bytes:
        flags = BuildFlags(strip_weights=True)
        return bytes(build_plan(tensorrt_rtx, step, contract, "float16", "8.9", Progress(), flags).data)

    if Machine.current().gpu is None:
        with pytest.raises(errors.EngineBuildError, match=r"(?s)Myelin.*without weights needs a GPU.*--strip-weights"):
            strip()
    else:
        full = bundle.path(bundle.manifest.engines[0].file).stat().st_size
        assert len(strip()) < full / 2


REFUSED: dict[str, tuple[EngineRecipe, str]] = {
    "rtx plugin": (EngineRecipe(("tensorrt-rtx",), (), (), "plugin"), "tensorrt-rtx: it takes no plugins"),
    "rtx hardware": (
        EngineRecipe(("tensorrt", "tensorrt-rtx"), (), (), flags=BuildFlags(hardware_compatible=True)),
        "tensorrt-rtx: it targets compute capabilities",
    ),
    "rtx version": (
        EngineRecipe(("tensorrt-rtx",), (), (), flags=BuildFlags(version_compatible=True)),
        "tensorrt-rtx: its package has no lean runtime",
    ),
    "refit of a lean runtime": (
        EngineRecipe(("tensorrt",), (), (), flags=BuildFlags(strip_weights=True, version_compatible=True)),
        "cannot be refitted",
    ),
    "refit of plugins": (EngineRecipe(("tensorrt",), (), (), "plugin", BuildFlags(True)), "leave --strip-weights out"),
    "no engine": (EngineRecipe(("onnx",), (), (), flags=BuildFlags(workspace=5)), "add --target"),
    "workspace": (EngineRecipe(("tensorrt",), (), (), flags=BuildFlags(workspace=0)), "workspace 0 must be 1 or more"),
    "plugin everywhere": (
        EngineRecipe(("tensorrt",), (), (), "plugin", BuildFlags(hardware_compatible=True)),
        "compiled for one compute capability",
    ),
    "attention": (EngineRecipe(("tensorrt",), (), (), "flash"), "'flash' is not one of native, plugin"),
    "capability of no engine": (EngineRecipe(("onnx",), (), ("banana",)), "add --target"),
    "no capability": (EngineRecipe(("tensorrt-rtx",), (), ("8.9", "banana")), "capability banana .*8.9"),
    "capability of another library": (EngineRecipe(("tensorrt-rtx",), (), ("9.0",)), "capability 9.0 .*8.9"),
    "no library": (EngineRecipe(("tensorrt",), (), ("8.9",)), r"needs tensorrt: .*\[tensorrt\]"),
}


class Idle(Progress):
    """Raises an error when a task begins."""

    def task(self, description: str, total: int | None = None) -> Any:
        raise AssertionError(description)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_target_cannot_do_is_refused_with_the_reason(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Fails if an unsupported option is silently ignored, or refused only after work has begun."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    recipe, words = REFUSED[case]
    chosen = {"attention": recipe.attention, "flags": recipe.flags}
    settings = ExportSettings(recipe.targets, ("float16",), recipe.capabilities, **chosen)
    with pytest.raises(errors.ExportError, match=words):
        export_bundle(str(source), tmp_path / "out", settings, Idle())
    assert not list(tmp_path.iterdir())


@no_ops
def test_hardware_compatible_plans_build_for_tensorrt(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the flag stops a build or is not part of the key."""
    monkeypatch.setitem(sys.modules, "tensorrt", as_tensorrt())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = BuildFlags(hardware_compatible=True)
    made = export(
        source, tmp_path / "out", targets=("tensorrt",), dtypes=("float16",), capabilities=("8.6",), flags=flags
    )
    [entry] = made.manifest.engines
    assert (entry.target, entry.library) == ("tensorrt", "tensorrt")
    assert entry.key()["flags"]["hardware_compatible"] is True
    assert Bundle.open(made.directory).manifest == made.manifest
    [timings] = (tmp_path / "cache/dpad").iterdir()
    assert timings.name == f"timing-tensorrt-{tensorrt_rtx.__version__}-8.6.cache" and timings.stat().st_size > 0


class Told(Progress):
    """Records the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_other_flags_are_another_engine(source: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Fails if an engine built with other flags is reused."""
    assert bundle.manifest.engines[0].flags == BuildFlags(workspace=64)
    shutil.copytree(bundle.directory, tmp_path / "out")
    before = bundle.manifest.engines[0]
    told = Told()
    settings = ExportSettings(targets=("tensorrt-rtx",), dtypes=("float16",), capabilities=("8.9",))
    again, _ = export_bundle(str(source), tmp_path / "out", settings, told)
    [after] = again.manifest.engines
    assert after.key() != before.key()
    assert any("built in" in line for line in told.lines) and not any("reused" in line for line in told.lines)


BROKEN: dict[str, Any] = {
    "flags": None,
    "flags.strip_weights": 1,
    "flags.workspace": "64",
    "flags.unknown": True,
    "onnx": 3,
    "plugin_version": None,
}


@pytest.mark.parametrize("field", BROKEN)
def test_the_manifest_is_read_strictly(bundle: Bundle, tmp_path: Path, field: str) -> None:
    """Fails if a manifest is accepted in which such a field is missing or has another type."""
    directory = Path(shutil.copytree(bundle.directory, tmp_path / "out"))
    data = json.loads((directory / "manifest.json").read_text())
    target, (*parents, name) = data["engines"][0], field.split(".")
    for parent in parents:
        target = target[parent]
    target[name] = BROKEN[field]
    (directory / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(errors.ManifestError, match=rf"engines\[0\].{field}"):
        Bundle.open(directory)
    target.pop(name)
    (directory / "manifest.json").write_text(json.dumps(data))
    if field != "flags.unknown":
        with pytest.raises(errors.ManifestError, match=rf"engines\[0\].{field} is missing"):
            Bundle.open(directory)


def test_compatible_plans_fit_where_others_do_not(bundle: Bundle) -> None:
    """Fails if a compatible plan is not used where the library promises it runs, or is used elsewhere."""
    entry = bundle.manifest.engines[0]
    later = replace(FITTING, gpu=Gpu("later", "12.0"))
    turing = replace(FITTING, gpu=Gpu("older", "7.5"))
    anywhere = replace(entry, flags=BuildFlags(hardware_compatible=True))
    require_match(anywhere, bundle, later)
    for plan, machine in ((entry, later), (anywhere, turing)):
        with pytest.raises(errors.EngineMismatch, match=r"compute_capability.*--compute-capability"):
            require_match(plan, bundle, machine)
    lasting = BuildFlags(version_compatible=True)
    require_match(replace(entry, library_version="1.2.0.54", flags=lasting), bundle, FITTING)
    for version in ("0.9.0", "1.99.0", "2.0.0"):
        with pytest.raises(errors.EngineMismatch, match="library_version"):
            require_match(replace(entry, library_version=version, flags=lasting), bundle, FITTING)


@no_ops
def test_timings_are_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the second build does not get the first one's timings, or a file from elsewhere stops a build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read: list[bytes] = []
    monkeypatch.setattr(timing.user_cache, "read", lambda name: read.append(_read(name)) or read[-1])
    _read = lambda name: (tmp_path / "dpad" / name).read_bytes() if (tmp_path / "dpad" / name).exists() else b""  # noqa: E731
    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR))
    trt = as_tensorrt()
    for _ in range(2):
        config = builder.create_builder_config()
        timings = TimingCache(trt, "8.9")
        timings.attach(config)
        assert config.get_timing_cache() is not None
        timings.save(config)
    assert timings.name == f"timing-tensorrt-{tensorrt_rtx.__version__}-8.9.cache"
    assert len(read[0]) == 0 and len(read[1]) > 0
    user_cache.write(timings.name, b"no timings")
    timings.attach(builder.create_builder_config())
    rtx = TimingCache(tensorrt_rtx, "8.9")
    rtx.attach(config)
    rtx.save(config)
    assert [path.name for path in (tmp_path / "dpad").iterdir()] == [timings.name]


def test_a_builder_that_refuses_timings_starts_without() -> None:
    """Fails if an unreadable timing cache stops a build."""

    class Config:
        given: list[bytes] = []  # noqa: RUF012

        def create_timing_cache(self, data: bytes) -> bytes | None:
            if data == b"raises":
                raise TypeError("not a timing cache")
            return None if data == b"refused" else data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.given.append(cache)
            return cache != b"foreign"

    trt = ModuleType("tensorrt")
    trt.__version__ = "11.0"  # type: ignore[attr-defined]
    for data in (b"raises", b"refused", b"foreign", b"good"):
        Config.given.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timing.user_cache, "read", lambda name, data=data: data)
            TimingCache(trt, "9.0").attach(Config())
        assert Config.given[-1] == (b"good" if data == b"good" else b"")
