"""Errors for incomplete copies of a bundle, and for paths above or below a bundle, name the cause or the right path."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, write_source
from click.testing import CliRunner
from test_travel import STEP, TOKENIZER, WEIGHTS, text_of, to_hub_cache

import dpad
from dpad.cli import main
from dpad.export.writing import writer
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 823976\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _listed_with_crlf(bundle: Path) -> None:
    path = bundle / TOKENIZER
    _crlf(path)
    data = path.read_bytes()
    entry = {"size": len(data), "sha256": sha256(data).hexdigest()}
    edit(bundle, lambda manifest: manifest["files"].update({TOKENIZER: entry}))
    path.write_bytes(data.replace(b"\r\n", b"\n"))


def _unfinished(bundle: Path) -> None:
    (bundle / WEIGHTS).unlink()
    _write(bundle / ".cache/huggingface/download/float32/x.123.incomplete", "x")


HAPPENED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer": (lambda b: _write(b / WEIGHTS, POINTER), "safetensors is a pointer.*git lfs pull"),
    "pointer as manifest": (lambda b: _write(b / "manifest.json", POINTER), "is a pointer.*lfs pull"),
    "CRLF": (lambda b: _crlf(b / TOKENIZER), "tokenizer.json had its line ends converted to CRLF.*autocrlf"),
    "CRLF lost": (_listed_with_crlf, "tokenizer.json had its line ends converted from CRLF"),
    "text of a link": (lambda b: _write(b / WEIGHTS, f"../../../blobs/{'a' * 64}"), "text of a link.*cp -rL"),
    "upper case": (lambda b: (b / STEP).rename(b / "float32/STEP.ONNX"), "STEP.ONNX was renamed.*float32/step.onnx"),
    "upper case folder": (lambda b: (b / "float32").rename(b / "FLOAT32"), "FLOAT32/.* was renamed"),
    "rsync": (
        lambda b: (b / STEP).rename(b / "float32/.step.onnx.a1B2c3"),
        "interrupted copy of float32/step.onnx.*copy or download float32/step.onnx again",
    ),
    "browser": (
        lambda b: (b / STEP).rename(b / "float32/step.onnx.crdownload"),
        "interrupted copy of float32/step.onnx.*copy or download float32/step.onnx again",
    ),
    "hf download": (_unfinished, "not finished: run the same hf download again"),
    "half a copy": (lambda b: _write(b / WEIGHTS, "half"), "has 4 bytes.*copy it again.*again: dpad export"),
    "lost": (lambda b: (b / STEP).unlink(), "step.onnx is missing; copy it again.*make the bundle again: dpad export"),
}


@pytest.mark.parametrize("case", HAPPENED)
def test_what_happened_on_the_way_is_named(bundle: Path, case: str) -> None:
    """Fails if the error says to export again although one command restores the file."""
    happen, said = HAPPENED[case]
    happen(bundle)
    with pytest.raises(errors.BundleError, match=said):
        dpad.load(bundle)


def test_a_manifest_with_other_line_ends_is_the_same(whole: Path, bundle: Path) -> None:
    """Fails if a change of white space in manifest.json is an error."""
    _crlf(bundle / "manifest.json")
    assert text_of(bundle) == text_of(whole)


@pytest.mark.parametrize("place", ["float32", "manifest.json", "float32/step.onnx", "nothing", "tokenizer/deeper"])
def test_a_path_below_a_bundle_says_where_it_is(bundle: Path, place: str) -> None:
    """Fails if the error for a path inside a bundle says to make a bundle there."""
    for command in ("inspect", "generate"):
        ran = CliRunner().invoke(main, [command, str(bundle / place), *(["w5"] if command == "generate" else [])])
        assert ran.exit_code == 1 and f"the bundle is {bundle}" in ran.stderr.replace("\n", " ")


def test_a_path_above_bundles_says_where_they_are(bundle: Path, tmp_path: Path) -> None:
    """Fails if the error for a folder of bundles, or a repository in the hub's cache, does not name the bundles."""
    for number in range(5):
        shutil.copytree(bundle, tmp_path / f"many/{number}")
    with pytest.raises(errors.MissingFile, match=f"bundles lie in it: {tmp_path}/many/0, .*/2 and 2 more"):
        Bundle.open(tmp_path / "many")
    snapshot = to_hub_cache(bundle, tmp_path / "hub/models--a--tiny")
    with pytest.raises(errors.MissingFile, match=f"bundles lie in it: {snapshot}"):
        Bundle.open(tmp_path / "hub/models--a--tiny")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_text(json.dumps({"name": "a web app"}))
    (tmp_path / "app/src").mkdir()
    with pytest.raises(errors.MissingFile, match="dpad export") as refused:
        Bundle.open(tmp_path / "app/src")
    assert "bundle is" not in str(refused.value)
    with pytest.raises(errors.MissingFile, match=r"is a checkpoint and not a bundle; make one with: dpad"):
        Bundle.open(write_source(tmp_path / "source"))


def test_a_hub_cache_that_lacks_a_file_says_to_download_it_again(bundle: Path, tmp_path: Path) -> None:
    """Fails if the error for an incomplete or damaged download says to copy or export again."""
    snapshot = to_hub_cache(bundle, tmp_path / "hub/models--a--tiny")
    blob = (snapshot / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(errors.AlteredFile, match="hf download with --force-download"):
        Bundle.open(snapshot)
    blob.rename(blob.with_suffix(".incomplete"))
    with pytest.raises(errors.MissingFile, match="lacks: run the same hf download again"):
        Bundle.open(snapshot)


def test_a_bundle_in_a_hub_cache_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    """Fails if an export into a hub's cache is refused only at its end."""
    snapshot = to_hub_cache(bundle, tmp_path / "hub/models--a--tiny")
    with pytest.raises(errors.ExportError, match="hub's cache, whose files are links"), writer.stage_bundle(snapshot):
        raise AssertionError("the work began")
    with pytest.raises(errors.MissingFile, match=f"bundles lie in it: {snapshot}"):
        Bundle.open(tmp_path / "hub")


def test_an_address_is_no_directory() -> None:
    """Fails if the error for a URL says to export to it."""
    with pytest.raises(errors.MissingFile, match="fetch it first, with hf download"):
        dpad.load("https://example.org/a/b")


def test_a_path_that_is_no_text_says_so(bundle: Path, tmp_path: Path) -> None:
    """Fails if a path that ONNX Runtime cannot use raises an error about its constructor."""
    odd = tmp_path / os.fsdecode(b"odd\xff")
    shutil.copytree(bundle, odd)
    with pytest.raises(errors.EngineError, match="not valid UTF-8.*rename the directory"):
        dpad.load(odd)
