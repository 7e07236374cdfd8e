"""A bundle is built in a workspace: concurrent exports do not affect each other, and other files are left alone."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_export import contents

from dpad.export.writing import writer
from dpad.runtime import errors


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


NEIGHBOURS: dict[str, Callable[[Path], Any]] = {
    "a file": lambda path: path.write_text("mine"),
    "an empty folder": lambda path: path.mkdir(),
    "a folder of others": lambda path: (path.mkdir(), (path / "thesis.txt").write_text("mine")),
    "a link to a folder": lambda path: (path.with_name("x").mkdir(), path.symlink_to("x")),
    "a broken link": lambda path: path.symlink_to("nothing"),
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a folder with a pipe for a lock": lambda path: (path.mkdir(), os.mkfifo(path / "dpad.lock")),
    "a folder with a link for a lock": lambda path: (path.mkdir(), (path / "dpad.lock").symlink_to("/etc/passwd")),
    "a folder with a folder for a lock": lambda path: (path / "dpad.lock").mkdir(parents=True),
    "a folder that may not be read": lambda path: path.mkdir(mode=0),
}


@pytest.mark.parametrize("name", [".out.stage-0123456789abcdef", ".out.stage-x", ".out.stage-1", ".out.stage--.old"])
@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_odd_neighbours_stop_no_stage_and_stay(tmp_path: Path, kind: str, name: str) -> None:
    """Fails if a file or folder with a name like a stage's stops an export, or is deleted."""
    NEIGHBOURS[kind](tmp_path / name)
    before = (tmp_path / name).lstat()
    held = sorted(tmp_path.rglob("*"))
    with writer.stage_bundle(tmp_path / "out") as stage:
        (stage / "a").write_text("1")
    assert contents(tmp_path / "out") == {"a": b"1"}
    assert os.path.samestat((tmp_path / name).lstat(), before)
    assert [path for path in sorted(tmp_path.rglob("*")) if "out" not in path.relative_to(tmp_path).parts] == held


EXPORTS = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    os.getpid = lambda: 7  # as in containers, each of which counts its processes from 1
    from dpad.export.writing import writer
    stage = writer.stage_bundle(Path(sys.argv[2]))
    folder = stage.__enter__()
    (folder / "who").write_text(sys.argv[3])
    print("begun", flush=True)
    sys.stdin.readline()
    assert (folder / "who").read_text() == sys.argv[3]
    stage.__exit__(None, None, None)
"""


def _begin(out: Path, who: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(EXPORTS), str(Path(__file__).parent), str(out), who]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_exports_with_one_process_id_do_not_wipe_each_others_stage(tmp_path: Path) -> None:
    """Fails if a running export's stage is removed because of its process id, or a killed export's stage stays."""
    out = tmp_path / "out"
    running = [_begin(out, who) for who in ("first", "second", "killed")]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
    running[2].kill()
    running[2].communicate()
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(errors.ExportError, match="stopped"), writer.stage_bundle(out):
        assert len(list(tmp_path.iterdir())) == 3  # the killed export's stage is gone, this one's is there
        raise errors.ExportError("stopped")
    told = [process.communicate("\n") for process in running[:2]]
    assert [process.returncode for process in running[:2]] == [0, 1], told
    assert "who would be lost" in told[1][1]  # the first export put something else there
    assert contents(tmp_path) == {"out/who": b"first", "out.new/who": b"second"}


def test_a_name_as_long_as_a_name_may_be(tmp_path: Path) -> None:
    """Fails if the stage's name is too long for the file system although the destination's is not."""
    for letter in ("n", "é"):
        out = tmp_path / (letter * (255 // len(letter.encode())))
        for text in ("1", "2"):
            with writer.stage_directory(out) as stage:
                (stage / "a").write_text(text)
            (out / "a").unlink()
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        out.rmdir()
