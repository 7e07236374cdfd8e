"""MODEL is found among the embedded models, as a directory, or in the local hub cache."""

import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from bundles import write_source

from dpad.export.hub import EMBEDDED, HUB_IDS, resolve
from dpad.runtime.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(cache: Path, hub_id: str, source: Path) -> Path:
    """Write a cache in the hub library's layout: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in source.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(repository / "blobs" / path.name)
    return repository


def dpad(cache: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run `dpad` offline with that cache, in a new process, since the hub library reads its settings at import."""
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dpad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_name_finds_what_the_hub_cache_holds(tmp_path: Path) -> None:
    """Fails if `llada` needs a network although its files are cached, or the bundle links to a link."""
    repository = hub_cache(tmp_path / "hub", HUB_IDS["llada"], write_source(tmp_path / "source"))
    ran = dpad(tmp_path / "hub", "export", "llada", "--out", tmp_path / "out", "--no-parity")
    assert ran.returncode == 0, ran.stderr
    weights = tmp_path / "out/float32/model.safetensors"
    assert not weights.is_symlink()
    assert weights.samefile(repository / "blobs/model.safetensors")
    assert HUB_IDS["llada"] in dpad(tmp_path / "hub", "inspect", tmp_path / "out").stdout


def test_what_is_not_here_says_which_command_fetches_it(tmp_path: Path) -> None:
    """Fails if the error is a connection error without the command to download."""
    ran = dpad(tmp_path / "hub", "export", "dream", "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert f"hf download {HUB_IDS['dream']}" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_download_brings_what_says_how_to_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a download omits generation_config.json or presets.json, or fetches code."""
    published = ("config.json", "generation_config.json", "presets.json", "modeling_sdar.py", "pytorch_model.bin")

    def download(hub_id: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        for name in published:
            if not local_files_only and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert sorted(path.name for path in resolve("sdar-4b").directory.iterdir()) == sorted(published[:3])


@pytest.mark.parametrize("model", ["", "./nowhere", "/nowhere", "a/b/c", "lada", "~/model"])
def test_a_typo_names_what_there_is(model: str) -> None:
    """Fails if a mistyped path is looked up as a hub id."""
    with pytest.raises(CheckpointError, match="neither a directory.*tiny.*llada"):
        resolve(model)


def test_embedded_checkpoints_are_found_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if `tiny` depends on the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in EMBEDDED:
        assert (resolve(name).directory / "config.json").is_file()
        assert resolve(name).embedded
