"""Bundles that were transferred by a hub, git, an archive or a copy open, or the error says what happened."""

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dpad
from dpad.cli import main
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle

WEIGHTS, STEP, TOKENIZER = "float32/model.safetensors", "float32/step.onnx", "tokenizer/tokenizer.json"


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes 1,500 nested folders, and removes them at the end, since pytest's own clean-up cannot."""

    def make(folder: Path) -> None:
        for _ in range(1500):
            folder /= "d"
            folder.mkdir()
        (folder / "x").touch()

    yield make
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def to_hub_cache(bundle: Path, repository: Path, *, below: str = "", absolute: bool = False) -> Path:
    """Write the cache of snapshot_download: every file is a link to a blob named by its hash, for small ones git's."""
    root = repository / "snapshots/0a1b2c"
    (repository / "blobs").mkdir(parents=True)
    (bundle / "README.md").write_text("# a page")
    (bundle / ".gitattributes").write_text("*.onnx filter=lfs")
    for path in (path for path in sorted(bundle.rglob("*")) if path.is_file()):
        data = path.read_bytes()
        kind = sha256 if len(data) > 10_000 else sha1
        blob = repository / "blobs" / kind(data).hexdigest()
        blob.write_bytes(data)
        link = root / below / path.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob if absolute else os.path.relpath(blob, link.parent))
    return root / below


def text_of(directory: Path, **options: Any) -> list[int]:
    with dpad.load(directory, **options) as model:
        return model.generate("w5 w6", gen_length=32).token_ids


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("below", ["", "bundles/tiny"])
def test_a_hub_cache_is_opened_as_it_is(whole: Path, bundle: Path, tmp_path: Path, below: str, absolute: bool) -> None:
    """Fails if a bundle in the hub's cache does not open without a copy, or gives other text."""
    snapshot = to_hub_cache(bundle, tmp_path / "hub/models--a--tiny", below=below, absolute=absolute)
    for engine in ("onnxruntime-cpu", "eager"):
        assert text_of(snapshot, engine=engine) == text_of(whole, engine=engine)
    (tmp_path / "current").symlink_to(snapshot)
    assert text_of(tmp_path / "current", verify_hashes=False) == text_of(whole)
    ran = CliRunner().invoke(main, ["inspect", str(snapshot)])
    assert ran.exit_code == 0, ran.stderr
    ran = CliRunner().invoke(main, ["parity", str(snapshot)])
    assert ran.exit_code == 1 and "--no-write" in ran.stderr and "cp -rL" in ran.stderr
    assert Bundle.open(snapshot)


def _blob(snapshot: Path) -> Path:
    return (snapshot / WEIGHTS).resolve()


def _relink(snapshot: Path, target: Path, name: str = WEIGHTS) -> None:
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(target)


def _outside(snapshot: Path) -> None:
    shutil.move(_blob(snapshot), snapshot.parents[3] / "elsewhere")
    _relink(snapshot, snapshot.parents[3] / "elsewhere")


def _other_repository(snapshot: Path) -> None:
    blobs = snapshot.parents[2] / "models--b--other/blobs"
    blobs.mkdir(parents=True)
    shutil.move(_blob(snapshot), blobs / _blob(snapshot).name)
    _relink(snapshot, blobs / sha256((snapshot.parents[2] / "x").name.encode()).hexdigest())


def _through_blobs(snapshot: Path) -> None:
    blob, secret = _blob(snapshot), snapshot.parents[3] / "secret"
    shutil.move(blob, secret)
    blob.symlink_to(secret)


def _own_name(snapshot: Path) -> None:
    shutil.move(_blob(snapshot), _blob(snapshot).with_name("weights"))
    _relink(snapshot, snapshot.parents[1] / "blobs/weights")


def _folder(snapshot: Path) -> None:
    shutil.move(snapshot / "float32", snapshot.parents[1] / "blobs" / ("0" * 40))
    (snapshot / "float32").symlink_to(snapshot.parents[1] / "blobs" / ("0" * 40))


def _one_file(snapshot: Path) -> None:
    data = (snapshot / STEP).read_bytes()
    (snapshot / STEP).unlink()
    (snapshot / STEP).write_bytes(data)


def _manifest(snapshot: Path) -> None:
    shutil.copy(snapshot / "manifest.json", snapshot.parents[3] / "manifest.json")
    _relink(snapshot, snapshot.parents[3] / "manifest.json", "manifest.json")


LEAVES = {
    "a file elsewhere": _outside,
    "another repository": _other_repository,
    "a blob that is a link": _through_blobs,
    "a blob of another name": _own_name,
    "a folder": _folder,
    "a manifest elsewhere": _manifest,
    "one file that is none": _one_file,
    "a companion elsewhere": lambda snapshot: _relink(snapshot, Path("/etc/passwd"), "README.md"),
    "a loop": lambda snapshot: _relink(snapshot, snapshot / WEIGHTS),
}


@pytest.mark.parametrize("case", LEAVES)
@pytest.mark.parametrize("hashes", [True, False])
def test_links_out_of_the_cache_are_refused(bundle: Path, tmp_path: Path, case: str, hashes: bool) -> None:
    """Fails if a link to a file outside the bundle's own repository is followed, or the error lacks the way out."""
    snapshot = to_hub_cache(bundle, tmp_path / "hub/models--a--tiny")
    LEAVES[case](snapshot)
    with pytest.raises(errors.SymlinkedFile, match=r"link.*cp -rL"):
        dpad.load(snapshot, verify_hashes=hashes)


def test_the_copy_that_the_message_names_opens(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the command in the message does not repair links into another cache, as older hub libraries made."""
    (tmp_path / "cache").mkdir()
    for name in (WEIGHTS, STEP):
        shutil.move(bundle / name, tmp_path / "cache" / Path(name).name)
        (bundle / name).symlink_to(tmp_path / "cache" / Path(name).name)
    with pytest.raises(errors.SymlinkedFile) as refused:
        dpad.load(bundle)
    monkeypatch.chdir(tmp_path)
    Path("bundles").mkdir()
    words = shlex.split("cp -rL" + str(refused.value).partition("cp -rL")[2])
    subprocess.run(words, check=True)
    assert Bundle.open(words[-1])


def test_blobs_are_hashed(bundle: Path, tmp_path: Path) -> None:
    """Fails if a damaged blob is accepted because of its name."""
    snapshot = to_hub_cache(bundle, tmp_path / "hub/models--a--tiny")
    data = bytearray(_blob(snapshot).read_bytes())
    data[-1] ^= 1
    _blob(snapshot).write_bytes(data)
    with pytest.raises(errors.AlteredFile, match="model.safetensors"):
        dpad.load(snapshot)


def _git(bundle: Path) -> None:
    subprocess.run(["git", "init", "-q", bundle], check=True)


COMPANIONS: dict[str, Callable[[Path], Any]] = {
    "--local-dir": lambda b: (b / ".cache/huggingface/download").mkdir(parents=True),
    "--local-dir's files": lambda b: _write(b / ".cache/huggingface/download/float32/step.onnx.metadata"),
    "page": lambda b: [_write(b / name) for name in ("README.md", "LICENSE", ".gitattributes", ".gitignore", "NOTICE")],
    "clone": _git,
    "other downloads": lambda b: [_write(b / name) for name in (".huggingface/download/x", ".msc", ".mdl", ".mv")],
    "root of a volume": lambda b: (b / "lost+found").mkdir(mode=0),
    "worktree": lambda b: _write(b / ".git"),
    "finder": lambda b: [
        _write(b / name) for name in (".DS_Store", "float32/.DS_Store", "float32/._step.onnx", "desktop.ini")
    ],
    "nfs": lambda b: _write(b / "float32/.nfs000000000123456700000001"),
}


def _write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("case", COMPANIONS)
def test_what_tools_put_beside_a_bundle_is_no_obstacle(whole: Path, bundle: Path, case: str) -> None:
    """Fails if files of a download, a clone or a file manager make a bundle unusable, or an export deletes them."""
    COMPANIONS[case](bundle)
    assert text_of(bundle) == text_of(whole)
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    foreign = sorted(names - {"manifest.json", *Bundle.open(bundle).manifest.files})
    if case not in ("finder", "nfs", "--local-dir", "root of a volume"):
        ran = CliRunner().invoke(main, ["parity", str(bundle)])
        assert ran.exit_code == 1 and "would be lost" in ran.stderr and "--no-write" in ran.stderr
        assert all((bundle / name).is_file() for name in foreign)


REFUSED: dict[str, Callable[[Path], Any]] = {
    "page in a step's folder": lambda b: _write(b / "float32/README.md"),
    "git's folder elsewhere": lambda b: _write(b / "float32/.git/x"),
    "other cache": lambda b: _write(b / ".cache/other/x"),
    "cache in a step's folder": lambda b: _write(b / "float32/.cache/huggingface/x"),
    "other file": lambda b: _write(b / "notes.txt"),
    "linked git folder": lambda b: (b / ".git").symlink_to(b.parent),
    "linked page": lambda b: (b / "README.md").symlink_to("/etc/passwd"),
    "linked cache": lambda b: [(b / ".cache").mkdir(), (b / ".cache/huggingface").symlink_to("/etc")],
    "page that is a pipe": lambda b: os.mkfifo(b / "README.md"),
    "socket": lambda b: _listen(b / "socket"),
    "name that is no text": lambda b: _write(Path(os.fsdecode(os.fsencode(b) + b"/\xff\xfe"))),
}


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


@pytest.mark.parametrize("case", [*REFUSED, "1,500 folders"])
def test_what_is_no_companion_is_refused(bundle: Path, case: str, deep: Callable[[Path], None]) -> None:
    """Fails if other additional files are accepted, or give an error that is not typed."""
    REFUSED.get(case, deep)(bundle)
    with pytest.raises((errors.UnlistedFile, errors.SymlinkedFile), match="move it out|cp -rL") as refused:
        dpad.load(bundle)
    assert "\n" not in str(refused.value)
