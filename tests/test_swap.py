"""Replacing a bundle: no file of a user is lost, and concurrent exports do not affect each other."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bundles import edit, export, write_source
from test_export import contents

from dpad.commands.parity import put_report
from dpad.export.forecast.synthetic import write_checkpoint
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.export.writing import swap, writer
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FILE_NAME


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("source")
    return export(write_source(folder / "model"), folder / "out")


def make(whole: Bundle, out: Path, meanwhile: Callable[[], object] = lambda: None) -> Path:
    """Put a bundle at `out` as an export does, and call `meanwhile` just before the end."""
    with writer.stage_bundle(out) as stage:
        writer.link_tree(whole.directory, stage, whole.manifest.files)
        shutil.copy(whole.directory / FILE_NAME, stage)
        meanwhile()
    return out


def _folder(out: Path) -> None:
    (out / "notes").mkdir()
    (out / "notes/a.txt").write_text("mine")


def _link(out: Path) -> None:
    (out / "mine").symlink_to("/")


def _deep(folder: Path) -> None:
    for _ in range(1500):
        folder /= "d"
        folder.mkdir()
    (folder / "x").write_text("mine")


INTO: dict[str, Callable[[Path], Any]] = {
    "file": lambda out: (out / "notes.txt").write_text("mine"),
    "file in a folder of the bundle": lambda out: (out / "float32/notes.txt").write_text("mine"),
    "folder": _folder,
    "link": _link,
    "pipe": lambda out: os.mkfifo(out / "pipe"),
    "1,500 folders": _deep,
    "name that is no text": lambda out: Path(os.fsdecode(os.fsencode(out) + b"/\xff")).write_text("mine"),
}


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed after the test, since pytest's own clean-up cannot remove 1,500 nested folders."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


@pytest.mark.parametrize("kind", INTO)
@pytest.mark.parametrize("when", ["early", "late"])
def test_what_comes_into_the_destination_meanwhile_is_not_lost(
    whole: Bundle, deep: Path, kind: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a file put into --out during an export is deleted, or the new bundle is lost because of it.

    "Late" is between the last check and the exchange of the directories.
    """
    out = make(whole, deep / "out")
    exchange, left = swap._exchange, [lambda: INTO[kind](out)]

    def late(a: Path, b: Path) -> bool:
        if left:
            left.pop()()
        return exchange(a, b)

    if when == "late":
        monkeypatch.setattr(swap, "_exchange", late)
    with pytest.raises(errors.ExportError, match="would be lost.*is unchanged, and the new one is in .*out.new"):
        make(whole, out, left.pop() if when == "early" else lambda: None)
    assert sorted(path.name for path in deep.iterdir()) == ["out", "out.new"]
    Bundle.open(deep / "out.new")
    with pytest.raises(errors.BundleError, match="move it out of the bundle|symbolic link"):
        Bundle.open(out)
    assert (out / FILE_NAME).is_file()


def test_a_directory_that_appears_meanwhile_is_not_lost(whole: Bundle, tmp_path: Path) -> None:
    """Fails if an export or `synth` into a new directory replaces a directory made meanwhile."""
    out = tmp_path / "out"

    def appear() -> None:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")

    with pytest.raises(errors.ExportError, match=r"thesis.txt would be lost.*is in .*out\.new"):
        make(whole, out, appear)
    assert contents(out) == {"thesis.txt": b"mine"}
    Bundle.open(tmp_path / "out.new")
    with pytest.raises(errors.ExportError, match=r"thesis.txt would be lost"), writer.stage_directory(tmp_path / "b"):
        out.rename(tmp_path / "b")
    assert contents(tmp_path / "b") == {"thesis.txt": b"mine"}


def test_a_file_written_into_the_old_bundle_after_the_swap_is_kept(whole: Bundle, tmp_path: Path) -> None:
    """Fails if a file is lost that a process writes inside the old directory after the exchange."""
    out = make(whole, tmp_path / "out")
    inside = os.open(out, os.O_RDONLY)
    discard = swap._discard

    def write_first(old: Path, names: list[str]) -> None:
        with open(os.open("late.txt", os.O_WRONLY | os.O_CREAT, dir_fd=inside), "w") as file:
            file.write("mine")
        discard(old, names)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(errors.ExportError, match=r"are in .*out\.old"):
        patch.setattr(swap, "_discard", write_first)
        make(whole, out)
    os.close(inside)
    assert contents(tmp_path / "out.old") == {"late.txt": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old"]


def test_where_directories_cannot_change_places_they_are_renamed(
    whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a file system without an exchange loses the old bundle or files added to it."""
    out = make(whole, tmp_path / "out")
    monkeypatch.setattr(swap, "_exchange", lambda a, b: False)
    Bundle.open(make(whole, out))
    with pytest.raises(errors.ExportError, match="notes.txt would be lost"):
        make(whole, out, lambda: INTO["file"](out))
    assert (out / "notes.txt").read_text() == "mine"


def test_a_killed_swap_is_mended(whole: Bundle, tmp_path: Path) -> None:
    """Fails if an old bundle that a killed process had moved away is deleted, or a file that was added to it."""
    out = make(whole, tmp_path / "out")
    left = tmp_path / ".out.stage-0123456789abcdef"
    left.mkdir()
    (left / "dpad.lock").touch()
    out.rename(left / "old")
    with pytest.raises(errors.ExportError), writer.stage_bundle(out):
        assert Bundle.open(out)
        raise errors.ExportError("stopped")
    left.mkdir()
    (left / "dpad.lock").touch()
    (left / "old").mkdir()
    (left / "old/late.txt").write_text("mine")
    make(whole, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old"]
    assert contents(tmp_path / "out.old") == {"late.txt": b"mine"}


def test_two_exports_to_one_destination_both_succeed(whole: Bundle, tmp_path: Path) -> None:
    """Fails if one of two exports to one destination fails or leaves something behind."""
    out = tmp_path / "out"

    def other() -> None:
        edit(make(whole, out), lambda data: data.update(name="first"))

    make(whole, out, other)
    assert Bundle.open(out).manifest == whole.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_says_where_its_bundle_is(whole: Bundle, tmp_path: Path) -> None:
    """Fails if a full export loses a file added to --out or the new bundle, or does not say where they are."""
    out = make(whole, tmp_path / "out")
    comes = Meanwhile("check float32", lambda: (out / "notes.txt").write_text("mine"))
    with pytest.raises(errors.ExportError, match=r"notes.txt would be lost.*the new one is in .*out\.new"):
        export_bundle(str(whole.directory.parent / "model"), out, ExportSettings(max_batch=2), comes)
    assert (out / "notes.txt").read_text() == "mine"
    assert Bundle.open(tmp_path / "out.new").manifest.contract.max_batch == 2


def test_a_report_does_not_bring_a_bundle_back(whole: Bundle, tmp_path: Path) -> None:
    """Fails if `dpad parity` replaces a bundle that was exported during the comparison by the older one."""
    out = make(whole, tmp_path / "out")
    old = Bundle.open(out)
    edit(out, lambda data: data.update(name="newer"))
    with pytest.raises(errors.ExportError, match="replaced by another bundle"):
        put_report(old, {"passed": True}, Progress())
    replaces = Meanwhile("hash files", lambda: edit(out, lambda data: data.update(name="newest")))
    with pytest.raises(errors.ExportError, match="replaced by another bundle"):
        put_report(Bundle.open(out), {"passed": True}, replaces)
    assert Bundle.open(out).manifest.name == "newest"


class Meanwhile(Progress):
    """Calls a function once, when a task begins."""

    def __init__(self, task: str, action: Callable[[], object]) -> None:
        self._task, self._actions = task, [action]

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Any:
        if self._actions and description.startswith(self._task):
            self._actions.pop()()
        yield lambda amount: None


def test_what_cannot_be_replaced_is_refused_before_the_work(whole: Bundle, tmp_path: Path) -> None:
    """Fails if a mount point as --out is refused only at the end of the export."""
    with pytest.raises(errors.ExportError, match="mount point.*choose a directory in it"):
        make(whole, Path("/proc"))
    with pytest.raises(errors.ExportError, match="cannot name a directory"):
        make(whole, tmp_path / "a\0b")
    with pytest.raises(errors.ExportError, match="mount point|would be lost"):
        write_checkpoint("llada", Path("/dev/shm"), 1, 0, Progress())


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_was_edited_in_a_bundle_is_kept(whole: Bundle, tmp_path: Path, when: str) -> None:
    """Fails if a chat template edited in a bundle is lost in the next export."""
    out = make(whole, tmp_path / "out")
    path = out / "tokenizer/chat_template.jinja"

    def mend() -> None:
        path.unlink()  # it may be a hard link
        path.write_text("mine")

    if when == "before":
        mend()
    with pytest.warns(UserWarning, match=r"by hand are in .*out\.old: tokenizer/chat_template\.jinja"):
        make(whole, out, mend if when == "meanwhile" else lambda: None)
    Bundle.open(out)
    assert path.read_text() != "mine"
    assert [
        p.relative_to(tmp_path / "out.old").as_posix() for p in (tmp_path / "out.old").rglob("*") if p.is_file()
    ] == ["tokenizer/chat_template.jinja"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.old"]
