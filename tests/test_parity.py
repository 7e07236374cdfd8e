"""Parity passes for a correct engine and fails for a wrong one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from bundles import export, write_source
from checkpoints import FAMILIES
from click.testing import CliRunner

from dpad.cli import main
from dpad.export.parity import compare as parity
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.parity.feeds import MODES, random_feeds
from dpad.export.parity.report import parity_lines
from dpad.export.progress import Progress
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.machine import Machine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("parity")
    return export(write_source(folder / "source"), folder / "out", dtypes=("float32", "float16", "w8a8"))


def test_onnxruntime_agrees_with_torch_in_every_dtype(bundle: Bundle) -> None:
    """Fails if a step or a trajectory differs, or the report lacks a dtype or a mode."""
    report = require_passed(compare_bundle(bundle, Progress(), steps=2))
    ran = {(e["engine"], e["variant"]): e for e in report["engines"] if e["status"] == "passed"}
    names = {("onnxruntime-cpu", "float32"), ("onnxruntime-cpu", "float16"), ("onnxruntime-cpu-w8a8", "w8a8")}
    assert set(ran) == names
    exact = ran["onnxruntime-cpu", "float32"]
    assert set(exact["modes"]) == {name for name, _, _ in MODES}
    assert set(exact["steps"]) == {
        "token_ids",
        "odds_against",
        "logits",
        "new_key",
        "new_value",
    }
    assert exact["trajectories"]["equal"] == exact["trajectories"]["positions"] > 0
    assert 0 < exact["steps"]["logits"]["max_abs"] < 1e-3
    assert any("largest difference" in line for line in parity_lines(report))


def test_trajectories_of_slow_models_are_run_when_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if parity of a slow model runs trajectories by default, or reports trajectories that it skipped."""
    monkeypatch.setattr(parity, "_PATIENCE", 0.0)
    names = ("onnxruntime-cpu-w8a8",)
    report = require_passed(compare_bundle(bundle, Progress(), engines=names, steps=1))
    assert any("not run" in line and "--trajectories" in line for line in parity_lines(report))
    report = compare_bundle(bundle, Progress(), engines=names, steps=1, trajectories=True)
    assert any("committed with the same token" in line for line in parity_lines(report))


def rescale(model: onnx.ModelProto) -> None:
    """Make the scale of attention slightly wrong."""
    for node in model.graph.node:
        if node.op_type == "SparseSuffixAttention":
            node.attribute[0].f *= 1.05


def unrotate(model: onnx.ModelProto) -> None:
    """Remove the rotation of keys."""
    for node in model.graph.node:
        if node.op_type == "Sin":
            node.op_type = "Cos"


def overlook(model: onnx.ModelProto) -> None:
    """Make the odds against a token count only one other token."""
    for node in model.graph.node:
        if node.op_type == "ReduceSum":
            node.op_type = "ReduceMax"


def reverse(model: onnx.ModelProto) -> None:
    """Make draws go by descending token ids."""
    for node in model.graph.node:
        if node.op_type == "CumSum":
            next(a for a in node.attribute if a.name == "reverse").i = 1


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("float32/step.onnx", rescale, "logits"),
        ("float32/step.onnx", unrotate, "new_key"),
        ("float32/step.onnx", overlook, "odds_against"),
        ("decide.onnx", reverse, "decisions"),
    ],
)
def test_a_wrong_engine_fails(
    bundle: Bundle, tmp_path: Path, file: str, damage: Callable[[onnx.ModelProto], None], said: str
) -> None:
    """Fails if a slightly wrong graph passes parity."""
    directory = Path(shutil.copytree(bundle.directory, tmp_path / "out"))
    model = onnx.load(directory / file, load_external_data=False)
    damage(model)
    onnx.save(model, directory / file)
    damaged = Bundle(directory, bundle.manifest)
    report = compare_bundle(damaged, Progress(), engines=["onnxruntime-cpu"], steps=1, trajectories=False)
    with pytest.raises(errors.ParityError, match=said):
        require_passed(report)


def test_an_engine_that_is_not_there_is_named(bundle: Bundle) -> None:
    """Fails if parity of a mistyped --engine passes."""
    with pytest.raises(errors.EngineUnavailable, match="onnxruntime-gpu.*onnxruntime-cpu"):
        compare_bundle(bundle, Progress(), engines=["onnxruntime-gpu"])


def test_an_engine_that_cannot_run_does_not_pass(tmp_path: Path) -> None:
    """Fails if parity passes although nothing was compared, since bfloat16 does not run on a CPU.

    Also fails if a bundle with only bfloat16 cannot be opened on CUDA.
    """
    out = tmp_path / "out"
    command = ["export", str(write_source(tmp_path / "source")), "--out", str(out), "--dtype", "bfloat16"]
    for state in ("exported", "up to date"):
        ran = CliRunner().invoke(main, command)
        assert ran.exit_code == 0 and state in ran.stdout
        way_out = f"dpad parity {out} --emulate, or add a float32 step: dpad export "
        assert f"parity: nothing could be compared here; {way_out}" in ran.stdout.splitlines()[-1]
    assert "nothing could be compared" in CliRunner().invoke(main, ["inspect", str(out)]).stdout
    bundle = Bundle.open(out)
    assert [c.name for c in candidates(bundle, Machine.current())] == ["torch-cuda", "onnxruntime-cuda"]
    report = require_passed(compare_bundle(bundle, Progress()))
    assert report["passed"] is None
    assert {engine["status"] for engine in report["engines"]} == {"skipped"}
    with pytest.raises(errors.EngineUnavailable, match="bfloat16"):
        compare_bundle(bundle, Progress(), engines=["onnxruntime-cpu"])


@pytest.mark.parametrize("family", FAMILIES)
def test_feeds_cover_pads_and_empty_caches(tmp_path: Path, family: str) -> None:
    """Fails if the random steps lack padding, empty caches or other differences between the modes."""
    bundle = export(write_source(tmp_path / "source", family), tmp_path / "out")
    feeds = list(random_feeds(bundle.manifest.contract, "float32", 3, seed=0))
    assert any((feed["gather_indices"] == -1).any() for _, feed in feeds)
    assert any((feed["cache_indices"] == -1).any() for mode, feed in feeds if mode in ("prefix", "dual"))
    assert all(feed["cache_indices"].shape[1] == 0 for mode, feed in feeds if mode in ("none", "refresh"))
    assert {feed["canvas"].shape[0] for _, feed in feeds} == {1, 2, 3}
