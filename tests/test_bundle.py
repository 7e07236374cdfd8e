"""A bundle that differs from its manifest is refused with an error that names the file and the way out."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import edit

import dpad
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines.onnx import OnnxEngine


def relist(data: dict[str, Any], old: str, new: str) -> None:
    data["files"][new] = data["files"].pop(old)


WEIGHTS, STEP = "float32/model.safetensors", "float32/step.onnx"


def truncate(bundle: Path) -> None:
    with (bundle / WEIGHTS).open("r+b") as file:
        file.truncate(100)


def flip_a_bit(bundle: Path) -> None:
    with (bundle / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def link_file(bundle: Path) -> None:
    (bundle / WEIGHTS).rename(bundle.parent / "elsewhere")
    (bundle / WEIGHTS).symlink_to(bundle.parent / "elsewhere")


def link_folder(bundle: Path) -> None:
    (bundle / "float32").rename(bundle.parent / "elsewhere")
    (bundle / "float32").symlink_to(bundle.parent / "elsewhere")


def link_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").rename(bundle.parent / "elsewhere")
    (bundle / "manifest.json").symlink_to(bundle.parent / "elsewhere")


TAMPERED = {
    "missing file": (lambda b: (b / STEP).unlink(), errors.MissingFile, "step.onnx"),
    "missing manifest": (lambda b: (b / "manifest.json").unlink(), errors.MissingFile, "manifest.json"),
    "truncated weights": (truncate, errors.TruncatedFile, "model.safetensors"),
    "one flipped bit": (flip_a_bit, errors.AlteredFile, "model.safetensors"),
    "altered graph": (lambda b: _replace(b / STEP, b"dpad", b"dpaX"), errors.AlteredFile, "step.onnx"),
    "extra file": (lambda b: (b / "float32/more.bin").write_bytes(b"x"), errors.UnlistedFile, "more.bin"),
    "extra hidden file": (lambda b: (b / ".x").write_bytes(b"x"), errors.UnlistedFile, ".x"),
    "named pipe": (lambda b: os.mkfifo(b / "pipe"), errors.UnlistedFile, "pipe"),
    "linked file": (link_file, errors.SymlinkedFile, "model.safetensors"),
    "linked folder": (link_folder, errors.SymlinkedFile, "float32"),
    "linked manifest": (link_manifest, errors.SymlinkedFile, "manifest.json"),
    "path upwards": (
        lambda b: edit(b, lambda d: relist(d, STEP, "../step.onnx")),
        errors.UnlistedFile,
        "step.onnx",
    ),
    "listed path upwards": (
        lambda b: edit(b, lambda d: d["files"].update({"../x": {"size": 1, "sha256": "0"}})),
        errors.OutOfTreeFile,
        "../x",
    ),
    "absolute path": (
        lambda b: edit(b, lambda d: d["files"].update({"/etc/passwd": {"size": 1, "sha256": "0"}})),
        errors.OutOfTreeFile,
        "/etc/passwd",
    ),
    "path in disguise": (
        lambda b: edit(b, lambda d: d["files"].update({"float32/./x": {"size": 1, "sha256": "0"}})),
        errors.OutOfTreeFile,
        "float32/./x",
    ),
    "windows path": (
        lambda b: edit(b, lambda d: d["files"].update({"..\\x": {"size": 1, "sha256": "0"}})),
        errors.OutOfTreeFile,
        "x",
    ),
    "unlisted reference": (
        lambda b: edit(b, lambda d: d["steps"]["float32"]["weights"].append("float32/other")),
        errors.UnlistedFile,
        "float32/other",
    ),
    "newer schema": (lambda b: edit(b, lambda d: d.update(schema_version=3)), errors.SchemaVersionError, "3"),
    "no schema": (lambda b: edit(b, lambda d: d.pop("schema_version")), errors.SchemaVersionError, "None"),
    "not JSON": (lambda b: (b / "manifest.json").write_text("{"), errors.ManifestError, "manifest.json"),
    "a list": (lambda b: (b / "manifest.json").write_text("[]"), errors.ManifestError, "manifest"),
    "not text": (
        lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe"),
        errors.ManifestError,
        "manifest.json",
    ),
    "no contract": (lambda b: edit(b, lambda d: d.pop("contract")), errors.ManifestError, "contract"),
    "unknown contract key": (
        lambda b: edit(b, lambda d: d["contract"].update(x=1)),
        errors.ManifestError,
        "x",
    ),
    "negative size": (
        lambda b: edit(b, lambda d: d["contract"].update(heads=-1)),
        errors.ManifestError,
        "heads",
    ),
    "steps of a wrong type": (lambda b: edit(b, lambda d: d.update(steps=[])), errors.ManifestError, "steps"),
    "no steps": (lambda b: edit(b, lambda d: d["steps"].clear()), errors.ManifestError, "no step"),
    "step of an unknown name": (
        lambda b: edit(b, lambda d: d["steps"].update(float8=d["steps"]["float32"])),
        errors.ManifestError,
        "'float8'",
    ),
    "step without weights": (
        lambda b: edit(b, lambda d: d["steps"]["float32"].update(weights=[])),
        errors.ManifestError,
        "steps.float32.weights",
    ),
    **{
        f"another {name}": (
            lambda b, name=name, value=value: edit(b, lambda d: d["contract"].update({name: value}), sign=False),
            errors.ManifestError,
            "digest differs",
        )
        for name, value in {"mask_token_id": 9, "eos_token_id": 9, "logit_shift": 1, "max_length": 99}.items()
    },
    **{
        f"{name} {value}": (
            lambda b, name=name, value=value: edit(b, lambda d: d["contract"].update({name: value})),
            errors.ManifestError,
            f"contract.{name}",
        )
        for name, value in {"max_batch": 0, "layers": 20_000_000, "logit_shift": 7, "vocab_size": 10**30}.items()
    },
    "another preset": (
        lambda b: edit(b, lambda d: d["presets"].update(default={"gen_length": 32}), sign=False),
        errors.ManifestError,
        "digest differs",
    ),
    "no digest": (lambda b: edit(b, lambda d: d.pop("digest"), sign=False), errors.ManifestError, "digest is missing"),
    "size of a wrong type": (
        lambda b: edit(b, lambda d: d["files"][STEP].update(size="1")),
        errors.ManifestError,
        "step.onnx",
    ),
}


def _replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_bundle_is_refused(bundle: Path, case: str) -> None:
    """Fails if a changed bundle opens, or the error does not say what is wrong."""
    tamper, kind, name = TAMPERED[case]
    tamper(bundle)
    with pytest.raises(errors.BundleError) as caught:
        dpad.load(bundle)
    assert type(caught.value) is kind
    assert name in str(caught.value)


def test_a_whole_bundle_opens_and_writes_text(bundle: Path) -> None:
    """Fails if the checks refuse an unchanged bundle."""
    with dpad.load(bundle) as model:
        result = model.generate("w5 w6", gen_length=32)
    assert len(result.canvas) == 32 + len(model.request("w5 w6").prompt_ids)
    assert model.engine.contract.mask_token_id not in result.canvas


def test_a_closed_model_says_so(bundle: Path) -> None:
    """Fails if `generate` after `close` raises an attribute error."""
    model = dpad.load(bundle)
    model.close()
    model.close()
    with pytest.raises(errors.EngineError, match="closed"):
        model.generate("w5 w6", gen_length=32)


@pytest.mark.parametrize(
    ("engine", "threads"), [*(("auto", value) for value in (-1, True, "2", 1.0)), ("eager", 1), ("torch-cuda", -5)]
)
def test_threads_are_a_number_and_not_torchs(bundle: Path, engine: str, threads: Any) -> None:
    """Fails if wrong threads raise ONNX Runtime's own error, or if a torch engine silently ignores threads."""
    said = "from 0 to" if engine == "auto" else f"engine {engine}: .*set_num_threads"
    with pytest.raises(errors.InvalidRequest, match=f"threads {threads!r} .*{said}"):
        dpad.load(bundle, engine=engine, threads=threads)


def test_a_step_that_is_not_the_contracts_is_refused(bundle: Path) -> None:
    """Fails if an engine opens a graph whose sizes differ from the contract's."""
    opened = Bundle.open(bundle)
    contract = replace(opened.manifest.contract, vocab_size=10**6)
    with pytest.raises(errors.EngineError, match="logits"):
        OnnxEngine(opened.path(STEP), contract, "float32")


def test_sizes_are_checked_without_hashes(bundle: Path) -> None:
    """Fails if `verify_hashes=False` skips the check of sizes, or does not skip the hashes."""
    flip_a_bit(bundle)
    Bundle.open(bundle, hashes=False)
    truncate(bundle)
    with pytest.raises(errors.TruncatedFile):
        Bundle.open(bundle, hashes=False)


def test_the_message_says_how_to_make_it_again(bundle: Path) -> None:
    """Fails if the error does not name the export command."""
    flip_a_bit(bundle)
    with pytest.raises(errors.AlteredFile, match="dpad export .* --out"):
        Bundle.open(bundle)


def test_not_a_bundle_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a wrong path, or a value that is not a path, gives a traceback."""
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(errors.MissingFile, match="dpad export"):
            Bundle.open(path)
    wrong: list[Any] = [None, 5, b"bundle"]
    for value in wrong:
        with pytest.raises(errors.BundleError, match="path"):
            dpad.load(value)
    with pytest.raises(errors.BundleError, match="too long"):
        dpad.load("x" * 5000)

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_symlink", refused)  # as for a folder without permission
    with pytest.raises(errors.BundleError, match="Permission denied"):
        dpad.load(tmp_path)


def test_checks_hold_under_optimisation(bundle: Path) -> None:
    """Fails if a check is an `assert`, which `python -O` removes."""
    flip_a_bit(bundle)
    code = "import sys, pathlib; from dpad.runtime.bundle.bundle import Bundle; Bundle.open(pathlib.Path(sys.argv[1]))"
    ran = subprocess.run([sys.executable, "-O", "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "AlteredFile" in ran.stderr
