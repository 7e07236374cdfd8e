"""Files are hashed in parallel, and reported as if they were hashed one after the other."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
from bundles import edit

from dpad.export.writing.digest import digests
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.hashes import Hashing
from dpad.runtime.errors import AlteredFile, BundleError

SIZES = (0, 1, 5 << 20, 3, (1 << 20) + 7, 2 << 20, 9, 11, 13, 17, 19)


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, int]:
    """Files of `SIZES` bytes, and their sizes."""
    made = {tmp_path / f"file{number}": size for number, size in enumerate(SIZES)}
    for path, size in made.items():
        path.write_bytes(os.urandom(size))
    return made


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dpad-hashes"]


@pytest.mark.parametrize("starts", [True, False])
def test_each_file_has_its_digest(files: dict[Path, int], starts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if digests are exchanged, progress is wrong or comes from another thread, or it needs threads to start."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    if not starts:
        monkeypatch.setattr(threading.Thread, "start", refused)
    told: list[tuple[int, threading.Thread]] = []
    with Hashing(files, lambda amount: told.append((amount, threading.current_thread()))) as hashing:
        found = {path: hashing.digest(path) for path in files}
    assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert sum(amount for amount, _ in told) == sum(SIZES)
    assert {thread for _, thread in told} == {threading.current_thread()}
    assert digests(list(files)) == list(found.values())


def test_an_error_is_of_its_own_file(files: dict[Path, int], tmp_path: Path) -> None:
    """Fails if an unreadable file stops the others, or its error is reported for another file."""
    first, lost, folder, last = tmp_path / "file0", tmp_path / "file2", tmp_path / "file4", tmp_path / "file10"
    lost.unlink()
    folder.unlink()
    folder.mkdir()
    with Hashing(files) as hashing:
        for path in (first, last):
            assert hashing.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(FileNotFoundError, match="file2"):
            hashing.digest(lost)
        with pytest.raises(OSError, match="file4"):
            hashing.digest(folder)


@pytest.mark.parametrize("threads", [1, 4])
def test_an_interrupt_ends_it(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if Ctrl-C waits until 2 TiB are hashed, or leaves a thread that still reads."""
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    huge = {tmp_path / name: 1 << 40 for name in ("one", "two")}
    for path, size in huge.items():
        with path.open("wb") as file:
            file.truncate(size)

    def interrupted(amount: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Hashing(huge, interrupted) as hashing:
        hashing.digest(tmp_path / "two")
    assert not running()


@pytest.mark.parametrize("order", [1, -1])
def test_the_first_fault_of_the_manifest_is_told(bundle: Path, order: int) -> None:
    """Fails if the file named for two changed ones depends on their sizes or on the threads' speed."""
    altered = ["decide.onnx", "float32/model.safetensors"][::order]
    for name in altered:
        data = bytearray((bundle / name).read_bytes())
        data[-1] ^= 1
        (bundle / name).write_bytes(data)
    edit(bundle, lambda data: data.update(files=dict(sorted(data["files"].items())[::order])))
    for _ in range(10):
        with pytest.raises(AlteredFile, match=altered[0]):
            Bundle.open(bundle)
    (bundle / altered[0]).unlink()
    with pytest.raises(BundleError, match=f"{altered[0]} is missing"):
        Bundle.open(bundle)
    assert not running()
