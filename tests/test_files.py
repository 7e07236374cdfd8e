"""Files from outside must be regular files, since opening a named pipe would block forever."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import export, write_source, write_tokenizer

import dpad
from dpad.evaluation.errors import DataError
from dpad.evaluation.journal import Journal
from dpad.models.checkpoint.checkpoint import Checkpoint, read_json
from dpad.runtime import errors
from dpad.runtime.bundle import files
from dpad.runtime.text.codec import TextCodec


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_no_reader_waits_for_a_pipe(pipe: Path) -> None:
    """Fails if reading a named pipe without a writer blocks; it runs in a process that can be stopped."""
    code = (
        "import sys, pathlib; from dpad.runtime.bundle.files import read_bytes; read_bytes(pathlib.Path(sys.argv[1]))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(pipe)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and f"not a regular file: '{pipe}'" in ran.stderr


@pytest.mark.parametrize("special", ["/dev/zero", "."])
def test_devices_and_folders_are_no_files(special: str) -> None:
    """Fails if an endless device or a folder is read."""
    with pytest.raises(OSError, match="not a regular file|Is a directory"):
        files.read_bytes(Path(special))


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 66 + "]" * 66, '"\\ud800"', '{"\\udfff": 1}', "{", "1" * 5000])
def test_json_that_cannot_be_handled_is_refused(tmp_path: Path, text: str) -> None:
    """Fails if JSON is accepted that later code cannot traverse or write."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="."):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" " * (17 << 20), "over 16 MiB"),
        ("[" + "{}," * 700_000 + "{}]", "values"),
        ("[" + "0," * 1_000_001 + "0]", "values"),
    ],
    ids=["size", "objects", "numbers"],
)
def test_json_is_read_within_limits(tmp_path: Path, text: str, said: str) -> None:
    """Fails if a file that is too large is read, or a small one that makes gigabytes of objects."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises((OSError, ValueError), match=said):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(errors.CheckpointError, match=f"a.json cannot be read as JSON: .*{said}"):
        read_json(tmp_path / "a.json")


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    """Fails if JSON within the limits is refused, such as a pair of surrogates."""
    data = {"a": [1, 2.5, None, True, "\U0001f600"], "deep": json.loads("[" * 60 + "]" * 60)}
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert files.read_json(tmp_path / "a.json") == data


def test_a_pipe_is_no_manifest_no_checkpoint_no_tokenizer_and_no_journal(tmp_path: Path, pipe: Path) -> None:
    """Fails if one of the readers does not use the common function and blocks on a pipe."""
    source = write_source(tmp_path / "source")
    bundle = export(source, tmp_path / "bundle").directory
    shutil.move(pipe, bundle / "manifest.json")
    with pytest.raises(errors.ManifestError, match="not a regular file"):
        dpad.load(bundle)
    pipe = Path(shutil.move(bundle / "manifest.json", tmp_path / "pipe"))
    with pytest.raises(errors.CheckpointError, match="not a regular file"):
        read_json(pipe)
    with pytest.raises(DataError, match="not a regular file"):
        Journal.open(pipe, {})
    for name, error in (("config.json", errors.CheckpointError), ("tokenizer.json", errors.CheckpointError)):
        (source / name).rename(tmp_path / "kept")
        os.mkfifo(source / name)
        with pytest.raises(error, match=f"{name}.*regular file"):
            export(source, tmp_path / "new")
        (tmp_path / "kept").replace(source / name)
    assert Checkpoint.open(source)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(errors.BundleError, match="not a regular file"):
        TextCodec.open(tmp_path)
