"""Export: what it makes and reuses, and that a failure changes nothing."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import export, write_source, write_tokenizer
from checkpoints import random_weights, raw_config, write_checkpoint
from safetensors.torch import load_file

import dpad
from dpad.commands.parity import put_report
from dpad.export import pipeline
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import BuildFlags, Manifest
from dpad.runtime.contract import StepContract


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model")


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_same_dtype_is_hard_linked(source: Path, tmp_path: Path) -> None:
    """Fails if a bundle in the checkpoint's dtype takes its size on disk again."""
    bundle = export(source, tmp_path / "out")
    assert os.path.samefile(bundle.path("float32/model.safetensors"), source / "model.safetensors")


def test_weights_are_copied_where_links_are_impossible(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if an export fails on a file system without hard links."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    bundle = export(source, tmp_path / "out")
    copy = bundle.path("float32/model.safetensors")
    assert not os.path.samefile(copy, source / "model.safetensors")
    assert copy.read_bytes() == (source / "model.safetensors").read_bytes()


def test_the_embedded_checkpoint_is_never_linked(tmp_path: Path) -> None:
    """Fails if a bundle shares files with the installed package."""
    bundle = export(Path("tiny"), tmp_path / "out")
    assert bundle.path("float32/model.safetensors").stat().st_nlink == 1
    assert bundle.manifest.provenance["source"] == "tiny"


def test_shards_are_converted_only_when_asked(tmp_path: Path) -> None:
    """Fails if a conversion changes other values, or happens without being requested."""
    source = write_source(tmp_path / "source", shards=3)
    bundle = export(source, tmp_path / "out", dtypes=("float32", "float16"))
    assert len({path.stat().st_mode for path in (bundle.directory / "float16").iterdir()}) == 1, (
        "a service that runs as another user could not read the weights"
    )
    for dtype in ("float32", "float16"):
        assert len(bundle.manifest.steps[dtype].weights) == 3
    for name in bundle.manifest.steps["float16"].weights:
        original = load_file(source / Path(name).name)
        for key, tensor in load_file(bundle.path(name)).items():
            torch.testing.assert_close(tensor, original[key].half(), rtol=0, atol=0)


def test_a_copy_of_a_tied_head_is_carried_along_or_refused(tmp_path: Path) -> None:
    """Fails if an identical copy of a tied head stops an export or an engine, or a different copy is accepted."""
    raw = raw_config("dream", tied=True)
    weights = random_weights(raw)
    copy = weights["model.embed_tokens.weight"].clone()
    source = write_checkpoint(tmp_path / "source", raw, weights | {"lm_head.weight": copy})
    write_tokenizer(source)
    export(source, tmp_path / "out", dtypes=("float32", "float16"), weights=("full", "int4"))
    opened = [dpad.load(tmp_path / "out", engine=name) for name in ("eager", "onnxruntime-cpu")]
    eager, compiled = (model.generate("w5 w6", gen_length=32) for model in opened)
    assert eager.token_ids == compiled.token_ids
    write_checkpoint(source, raw, weights | {"lm_head.weight": copy + 1})
    with pytest.raises(errors.ExportError, match=r"lm_head.weight differs from it; untie them"):
        export(source, tmp_path / "out")


@pytest.mark.parametrize(("value", "said"), [(1e6, "reaches 1e\\+06.*bfloat16"), (float("nan"), "NaN")])
def test_a_value_that_float16_cannot_hold_is_refused(tmp_path: Path, value: float, said: str) -> None:
    """Fails if an overflow, or a NaN in the checkpoint, is not refused."""
    raw = raw_config("llada")
    weights = random_weights(raw)
    weights["model.transformer.blocks.1.up_proj.weight"][0, 0] = value
    write_tokenizer(write_checkpoint(tmp_path / "source", raw, weights))
    with pytest.raises(errors.ExportError, match=f"blocks.1.up_proj.*{said}"):
        export(tmp_path / "source", tmp_path / "out", dtypes=("float16",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_broken_weight_is_refused_where_nothing_is_converted(tmp_path: Path, stored: str, value: float) -> None:
    """Fails if NaN in linked weights is not refused, or the old bundle is lost."""
    old = export(write_source(tmp_path / "old"), tmp_path / "out")
    raw = raw_config("dream")
    weights = random_weights(raw, dtype=getattr(torch, stored))
    weights["model.layers.1.self_attn.k_proj.bias"][-1] = value
    write_tokenizer(write_checkpoint(tmp_path / "source", raw, weights, shards=2))
    with pytest.raises(errors.ExportError, match=r"layers.1.self_attn.k_proj.bias of the checkpoint contains NaN"):
        export(tmp_path / "source", tmp_path / "out", dtypes=(stored,))
    assert Bundle.open(tmp_path / "out").manifest == old.manifest


def test_a_second_export_does_nothing(source: Path, tmp_path: Path) -> None:
    """Fails if an up-to-date bundle is made again, or one with other settings is not."""
    out = tmp_path / "out"
    settings = ExportSettings()
    first, made = export_bundle(str(source), out, settings, Progress())
    before = (out / "manifest.json").stat().st_mtime_ns
    second, made_again = export_bundle(str(source), out, settings, Progress())
    assert made
    assert not made_again
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert second.manifest == first.manifest
    other, made_third = export_bundle(str(source), out, ExportSettings(max_batch=2), Progress())
    assert made_third
    assert other.manifest.contract.max_batch == 2


def test_a_damaged_bundle_is_made_again(source: Path, tmp_path: Path) -> None:
    """Fails if a damaged bundle is reported as up to date."""
    out = export(source, tmp_path / "out").directory
    (out / "float32/step.onnx").write_bytes(b"")
    assert export_bundle(str(source), out, ExportSettings(), Progress())[1]
    Bundle.open(out)


def test_a_failed_check_leaves_the_old_bundle(source: Path, tmp_path: Path) -> None:
    """Fails if a bundle that fails parity replaces an older bundle."""
    out = export(source, tmp_path / "out").directory
    before = contents(out)

    def fail(*args: Any) -> dict[str, Any]:
        raise errors.ParityError("no")

    with pytest.raises(errors.ParityError):
        export_bundle(str(source), out, ExportSettings(), Progress(), check=fail)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "years of work"},
        {"manifest.json": '{"name": "a web app", "icons": []}', "index.html": ""},
        {"manifest.json": '{"schema_version": "1", "contract": {}, "files": {}}'},
        {"manifest.json": '{"schema_version": 1, "contract": {}, "files": ["src/a.py"]}', "src/a.py": ""},
        {"manifest.json": '{"schema_version": 0, "contract": {}, "files": {"step.onnx": {}}}', "notes/today.md": ""},
        {"manifest.json": "{"},
    ],
)
def test_somebody_elses_directory_is_not_replaced(source: Path, tmp_path: Path, files: dict[str, str]) -> None:
    """Fails if --out can delete files that do not belong to a bundle."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(errors.ExportError, match=f"not just a bundle: ({'|'.join(files)}) would be lost"):
        export(source, tmp_path)
    assert contents(tmp_path) == {name: text.encode() for name, text in files.items()}


def test_a_file_put_into_a_bundle_is_not_lost(source: Path, tmp_path: Path) -> None:
    """Fails if a new export deletes a user's file in a bundle, or cannot replace a bundle with an older schema."""
    out = export(source, tmp_path / "out").directory
    (out / "float32/notes.txt").write_text("measured by hand")
    with pytest.raises(errors.UnlistedFile, match="notes.txt.*move it out"):
        Bundle.open(out)
    with pytest.raises(errors.ExportError, match="float32/notes.txt would be lost"):
        export(source, out)
    (out / "float32/notes.txt").unlink()
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    export(source, out)
    Bundle.open(out)


def test_a_link_to_a_bundle_stays_a_link(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if replacing a bundle through a link replaces the link, or leaves a stage behind."""
    bundle = export(source, tmp_path / "tiny-1")
    (tmp_path / "current").symlink_to("tiny-1")
    export(source, tmp_path / "current", max_batch=2)
    assert Bundle.open(tmp_path / "tiny-1").manifest.contract.max_batch == 2
    put_report(Bundle.open(tmp_path / "current"), {"passed": True}, Progress())
    monkeypatch.chdir(bundle.directory / "float32")
    put_report(Bundle.open(Path("..")), {"passed": False}, Progress())
    assert (tmp_path / "current").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "tiny-1"]
    assert Bundle.open(tmp_path / "current").path("parity.json").read_text() == '{\n "passed": false\n}\n'


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtypes": ("float64",)}, "float64.*float32, float16, bfloat16, w8a8"),
        ({"targets": ("onnx", "coreml")}, "coreml.*tensorrt-rtx"),
        ({"targets": ("tensorrt-rtx",), "dtypes": ("float32",)}, "needs float16 or bfloat16"),
        ({"max_batch": 0}, "max_batch 0 must be 1 or more"),
        ({"max_batch": 2**16 + 1}, "max_batch 65537 .*at most 65536"),
        ({"max_length": 0}, "max_length 0 must be 1 or more"),
        ({"max_length": 2**31}, "max_length 2147483648 .*at most 16777216"),
        ({"block_length": 10**30}, "block_length 1000.*at most"),
        ({"window": -1}, "window -1 "),
        ({"window": "256"}, "window '256' "),
        ({"max_batch": True}, "max_batch True "),
        ({"max_length": 512.0}, "max_length 512.0 "),
        ({"flags": BuildFlags(workspace=2**40)}, "workspace 1099511627776 .*at most"),
        ({"flags": BuildFlags(workspace=0)}, "workspace 0 must be 1 or more"),
    ],
)
def test_settings_that_cannot_work(source: Path, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    """Fails if a wrong setting is refused only after work has begun."""
    with pytest.raises(errors.ExportError, match=said):
        export(source, tmp_path / "out", **settings)


@pytest.mark.parametrize(
    "settings", [{"max_length": 2**24, "max_batch": 2**16, "window": 2**24, "block_length": 2**24}, {"max_length": 1}]
)
def test_the_widest_settings_make_a_bundle_that_opens(source: Path, tmp_path: Path, settings: dict[str, int]) -> None:
    """Fails if an export succeeds whose bundle cannot be loaded."""

    def check(stage: Path, manifest: Manifest, progress: Progress) -> dict[str, Any]:
        return require_passed(compare_bundle(Bundle(stage, manifest), progress, steps=1, trajectories=False))

    export_bundle(str(source), tmp_path / "out", ExportSettings(**settings), Progress(), check=check)
    with dpad.load(tmp_path / "out") as model:
        assert model.generate([], gen_length=1, block_length=1).nfe == 1


def test_a_bundle_that_cannot_be_loaded_is_not_put_in_place(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if an export succeeds whose bundle cannot be opened by `dpad.load` or cannot decode."""
    old = export(source, tmp_path / "out")
    made = pipeline.make_contract

    def wrong(checkpoint: Checkpoint, settings: ExportSettings) -> StepContract:
        return replace(made(checkpoint, settings), max_length=2**31)

    monkeypatch.setattr(pipeline, "make_contract", wrong)
    with pytest.raises(errors.ExportError, match="new bundle cannot be used: manifest.json: contract.max_length"):
        export(source, tmp_path / "out", max_batch=2)
    monkeypatch.undo()
    raw = raw_config("llada")
    weights = random_weights(raw)
    weights["model.transformer.ln_f.weight"][:] = 3e38  # finite, but its products overflow
    write_tokenizer(write_checkpoint(tmp_path / "source", raw, weights))
    with pytest.raises(errors.ExportError, match="new bundle cannot be used: the engine produced NaN"):
        export(tmp_path / "source", tmp_path / "out")
    assert Bundle.open(tmp_path / "out").manifest == old.manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_checkpoint_without_tokenizer_takes_token_ids(source: Path, tmp_path: Path) -> None:
    """Fails if a checkpoint without a tokenizer cannot be used, or a text prompt does not give a clear error."""
    raw = raw_config("llada")
    write_checkpoint(tmp_path / "source", raw, random_weights(raw))
    with dpad.load(export(tmp_path / "source", tmp_path / "out").directory) as model:
        result = model.generate([5, 6, 7], gen_length=32)
        assert result.canvas[:3].tolist() == [5, 6, 7]
        assert result.text == ""
        with pytest.raises(errors.InvalidRequest, match="no tokenizer"):
            model.generate("w5")


def test_nothing_of_this_machine_is_in_the_graph(source: Path, tmp_path: Path) -> None:
    """Fails if step.onnx or the manifest contains a path of this machine."""
    bundle = export(source, tmp_path / "out")
    for name in ("float32/step.onnx",):
        data = bundle.path(name).read_bytes()
        assert b"site-packages" not in data
        assert str(Path.cwd()).encode() not in data
