"""TensorRT-RTX plans, built here without a GPU; a plan that does not fit the machine is never opened."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tensorrt_rtx
from bundles import export, write_source

from dpad.export.engines import recipe as engines
from dpad.export.engines.plan import build_plan, capabilities, profiles
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import PACKED
from dpad.runtime.engines.candidates import candidates, require_match
from dpad.runtime.engines.machine import Gpu, Machine
from dpad.runtime.engines.select import open_engine

FITTING = Machine("linux-x86_64", Gpu("test", "8.9"), "")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "out"
    return export(source, out, targets=("onnx", "tensorrt-rtx"), capabilities=("8.9",))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llada", "bfloat16"),
        ("dream", "float16"),
        pytest.param("llada", "float16", marks=pytest.mark.slow),
        pytest.param("dream", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_every_family_builds_in_sixteen_bit(tmp_path: Path, family: str, dtype: str) -> None:
    """Fails if TensorRT-RTX cannot compile the exported graph."""
    source = write_source(tmp_path / "source", family)
    bundle = export(source, tmp_path / "out", targets=("tensorrt-rtx",), dtypes=(dtype,), capabilities=("8.6", "12.0"))
    assert [entry.compute_capability for entry in bundle.manifest.engines] == ["8.6", "12.0"]
    for entry in bundle.manifest.engines:
        assert bundle.path(entry.file).stat().st_size > 10_000
        assert entry.build_seconds > 0
        assert entry.library_version == tensorrt_rtx.__version__
        assert entry.step_sha256 == bundle.manifest.files[f"{dtype}/step.onnx"].sha256


@pytest.mark.parametrize(("family", "dtype"), [("llada", "float16"), ("dream", "bfloat16")])
def test_packed_weights_build(tmp_path: Path, family: str, dtype: str) -> None:
    """Fails if TensorRT-RTX refuses a format or unpacks large weights, or name and key of a plan lack the format."""
    source = write_source(tmp_path / "source", family, width=512, heads=4, kv_heads=4, mlp_width=1536)
    settings = {"dtypes": (dtype,), "weights": ("full", *PACKED), "capabilities": ("8.9",)}
    bundle = export(source, tmp_path / "out", targets=("tensorrt-rtx",), **settings)
    full, *packed = bundle.manifest.engines
    for entry, weights in zip(packed, PACKED, strict=True):
        assert entry.file == f"engines/tensorrt-rtx-sm89-{dtype}-weights-{weights}.plan"
        assert bundle.path(entry.file).stat().st_size < bundle.path(full.file).stat().st_size
        require_match(entry, bundle, FITTING)
        with pytest.raises(errors.EngineMismatch, match=f"--dtype={dtype} .*--compute.*--weights={weights} "):
            require_match(replace(entry, step_sha256="0" * 64), bundle, FITTING)


def test_the_builders_own_error_is_shown(bundle: Bundle) -> None:
    """Fails if the error of a failed build (float32 has no fused attention) lacks the builder's message."""
    contract = bundle.manifest.contract
    with pytest.raises(errors.EngineBuildError, match="(?s)float32.*8.9.*Attention"):
        build_plan(tensorrt_rtx, bundle.path("float32/step.onnx"), contract, "float32", "8.9", Progress())


def test_a_build_that_does_not_fit_in_memory_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a build starts that exceeds memory, or a bundle is written."""
    monkeypatch.setattr(engines, "available_memory", lambda: 400_000_000)
    with pytest.raises(errors.ExportError, match=r"takes about 0\.5 GB of memory, 0\.4 GB are available; build on a"):
        export(source, tmp_path / "out", targets=("tensorrt-rtx",), capabilities=("8.9",))
    assert not (tmp_path / "out").exists()


def test_an_unknown_capability_names_the_known_ones(bundle: Bundle) -> None:
    """Fails if a typo reaches the builder."""
    contract = bundle.manifest.contract
    with pytest.raises(errors.EngineBuildError, match="9.0.*8.9"):
        build_plan(tensorrt_rtx, bundle.path("float16/step.onnx"), contract, "float16", "9.0", Progress())
    assert "8.9" in capabilities(tensorrt_rtx)


def test_tensorrt_builds_for_this_machine_only(bundle: Bundle) -> None:
    """Fails if TensorRT, which can target only this machine's GPU, builds for another or gives no reason."""
    tensorrt = ModuleType("tensorrt")
    gpu = Machine.current().gpu
    assert capabilities(tensorrt) == ([gpu.compute_capability] if gpu else [])
    with pytest.raises(errors.EngineBuildError, match=r"tensorrt cannot target compute capability 7\.5"):
        build_plan(tensorrt, bundle.path("float16/step.onnx"), bundle.manifest.contract, "float16", "7.5", Progress())


def test_a_file_that_is_no_model_is_a_build_error(bundle: Bundle, tmp_path: Path) -> None:
    """Fails if the parser's error is lost."""
    (tmp_path / "step.onnx").write_bytes(b"no model")
    with pytest.raises(errors.EngineBuildError, match="cannot parse"):
        build_plan(tensorrt_rtx, tmp_path / "step.onnx", bundle.manifest.contract, "float16", "8.9", Progress())


def test_profiles_lie_within_the_contract(bundle: Bundle) -> None:
    """Fails if an engine is built for shapes that the contract forbids, or misses some it allows."""
    contract = bundle.manifest.contract
    limits = contract.axis_ranges()
    for ranges in profiles(contract).values():
        for axis, (low, likely, high) in ranges.items():
            assert 1 <= low <= likely <= high <= limits[axis][1]
    assert profiles(contract)["refresh"]["Q"][2] == contract.max_length


def test_an_unchanged_engine_is_reused(source: Path, bundle: Bundle) -> None:
    """Fails if a second export rebuilds an engine with the same key, or reuses one with another key."""
    plan = bundle.path(bundle.manifest.engines[0].file).read_bytes()

    class Said(Progress):
        lines: list[str] = []  # noqa: RUF012

        def say(self, message: str) -> None:
            self.lines.append(message)

    settings = ExportSettings(targets=("onnx", "tensorrt-rtx"), capabilities=("8.9", "8.6"))
    again, made = export_bundle(str(source), bundle.directory, settings, Said())
    assert made
    assert [line for line in Said.lines if "reused" in line and "sm89" in line]
    assert [line for line in Said.lines if "built in" in line and "sm86" in line]
    assert again.path(again.manifest.engines[0].file).read_bytes() == plan


CHANGES: dict[str, dict[str, Any]] = {
    "platform": {"platform": "windows-amd64"},
    "library_version": {"library_version": "1.0.0"},
    "compute_capability": {"compute_capability": "12.0"},
    "step_sha256": {"step_sha256": "0" * 64},
    "weights_sha256": {"weights_sha256": ("0" * 64,)},
}


@pytest.mark.parametrize("field", CHANGES)
def test_an_engine_that_does_not_fit_names_the_field_and_the_command(bundle: Bundle, field: str) -> None:
    """Fails if a plan of another version or GPU is deserialised."""
    entry = bundle.manifest.engines[0]
    require_match(entry, bundle, FITTING)
    with pytest.raises(errors.EngineMismatch, match=f"{field} is .*dpad export .* --target=tensorrt-rtx"):
        require_match(replace(entry, **CHANGES[field]), bundle, FITTING)


def test_without_a_gpu_the_plan_says_why_and_cannot_be_opened(bundle: Bundle) -> None:
    """Fails if a plan is opened on a machine that cannot run it."""
    if Machine.current().gpu is not None:
        pytest.skip("this machine has a GPU")
    (plan, *_) = candidates(bundle, Machine.current())
    assert plan.obstacle is not None
    assert "driver" in plan.obstacle
    with pytest.raises(errors.EngineUnavailable, match="driver"):
        open_engine(bundle, plan.name)
    with pytest.raises(errors.EngineUnavailable, match="onnxruntime-cpu"):
        open_engine(bundle, "nonsense")
