"""What candidate code can and cannot do; each test runs a program that tries it."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpad.evaluation.errors import SandboxError
from dpad.evaluation.sandbox.sandbox import Limits, Sandbox
from dpad.runtime.errors import InvalidRequest

LIMITS = Limits(seconds=3, memory=512 << 20, processes=8, output=1 << 16)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """A sandbox with the isolation that this kernel allows."""
    try:
        return Sandbox(LIMITS)
    except SandboxError:
        return Sandbox(LIMITS, weak=True)


@pytest.fixture
def isolated(sandbox: Sandbox) -> Sandbox:
    """A fully isolated sandbox; tests that need it are skipped if the kernel refuses isolation."""
    if sandbox.refused:
        pytest.skip(f"this kernel refuses {sandbox.refused}")
    return sandbox


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("raise ValueError('no')", False),
        ("def f(:", False),
        ("import sys\nsys.exit(0)", False),
        ("import sys\nsys.exit()", False),
        ("import os\nos._exit(0)", False),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", False),
        ("import ctypes\nctypes.string_at(0)", False),
        ("def f(n): return f(n)\nf(1)", False),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", True),
        ("import sys\nassert sys.stdin.read() == ''", True),
        ("import os\nassert set(os.environ) <= {'LC_CTYPE'}, os.environ", True),  # set by Python itself
        ("import sys\nassert '' not in sys.path and sys.flags.isolated", True),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int'\nassert A(1).x == 1", True),
        ("print('x' * 10**7)", True),
        ("open('here', 'w').write('x')\nassert open('here').read() == 'x'", True),
        ("open('big', 'w').write('x' * 10**6)", False),
        ("\ud800", False),
        ("\0", False),
    ],
)
def test_only_a_program_that_reaches_its_end_passes(sandbox: Sandbox, program: str, passed: bool) -> None:
    """Fails if a program that exits early passes, or a harmless program does not."""
    verdict = sandbox.run(program)
    assert verdict.passed == passed, verdict
    assert bool(verdict.detail) != passed


@pytest.mark.parametrize("name", ["seconds", "memory", "processes", "output"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None, True, 10**30, 10**400])
def test_what_is_no_limit_is_refused(sandbox: Sandbox, name: str, value: Any) -> None:
    """Fails if an invalid limit is accepted, or raises an error of Python's."""
    with pytest.raises(InvalidRequest, match=name):
        Limits(**{name: value})
    with pytest.raises(InvalidRequest, match="a program is text, not "):
        sandbox.run(value if not isinstance(value, str) else b"1")  # type: ignore[arg-type]


def test_the_largest_limits_are_kept(sandbox: Sandbox) -> None:
    """Fails if an accepted limit cannot be set."""
    most = Sandbox(Limits(1 << 48, 1 << 48, 1 << 48, 1 << 48), weak=bool(sandbox.refused))
    assert most.run("assert 1").passed


def test_a_loop_without_end_is_stopped(sandbox: Sandbox) -> None:
    """Fails if a program can exceed its time, or passes then."""
    began = time.monotonic()
    verdict = sandbox.run("while True:\n    pass")
    assert not verdict.passed
    assert verdict.detail == "not finished after 3 s"
    assert time.monotonic() - began < 10


def test_memory_is_limited(sandbox: Sandbox) -> None:
    """Fails if a program can exceed its memory."""
    patient = Sandbox(replace(LIMITS, seconds=60), weak=bool(sandbox.refused))
    assert patient.run("x = []\nwhile True:\n    x.append(bytearray(10**7))").detail == "MemoryError"
    assert patient.run("bytearray(10**8)").passed


def test_a_fork_bomb_ends(isolated: Sandbox) -> None:
    """Fails if a program can start more processes than its limit, for any user."""
    verdict = isolated.run(
        "import os, time\n"
        "count = 0\n"
        "try:\n"
        "    while count < 100:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(60)\n"
        "        count += 1\n"
        "except BlockingIOError:\n"
        "    pass\n"
        "assert 0 < count < 10, count\n"
    )
    assert verdict.passed, verdict


def test_nothing_outlives_its_program(isolated: Sandbox) -> None:
    """Fails if a child process that left the session continues after the verdict."""
    marker = f"left-behind-{os.getpid()}"
    child = f"import os, time; os.setsid() if os.getpid() != os.getsid(0) else 0; time.sleep(60) # {marker}"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
    assert isolated.run(program).passed
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    assert len(commands) > 1
    assert not any(marker.encode() in command for command in commands)


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_there_is_no_network(isolated: Sandbox) -> None:
    """Fails if a program can connect to a server that this test runs."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # this process can connect
        verdict = isolated.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    assert not verdict.passed
    assert "unreachable" in verdict.detail


def test_files_outside_its_folder_stay_as_they_are(isolated: Sandbox, tmp_path: Path) -> None:
    """Fails if a program can make, change or remove a file outside its folder."""
    file = tmp_path / "file"
    file.write_text("kept")
    for attempt in (
        f"open({str(file)!r}, 'w')",
        f"open({str(file)!r}, 'a').write('x')",
        f"import os; os.remove({str(file)!r})",
        f"import os; os.rename({str(file)!r}, 'mine')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
    ):
        verdict = isolated.run(attempt)
        assert not verdict.passed, attempt
        assert "Permission denied" in verdict.detail or "cross-device" in verdict.detail
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "kept")]


def test_other_processes_are_out_of_sight(isolated: Sandbox) -> None:
    """Fails if a program can signal the process that checks it."""
    verdict = isolated.run(f"import os\nos.kill({os.getpid()}, 0)")
    assert "ProcessLookupError" in verdict.detail or "PermissionError" in verdict.detail


def test_programs_leave_no_folders(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if temporary folders are left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sandbox.run("import os\nos.mkdir('locked')\nopen('locked/file', 'w')\nos.chmod('locked', 0)")
    assert list(tmp_path.iterdir()) == []


REFUSED = """
import ctypes
ctypes.CDLL(None).unshare(0x10000000)  # inside, without an identity of its own, the kernel refuses more namespaces
from dpad.evaluation.errors import SandboxError
from dpad.evaluation.sandbox.sandbox import Sandbox
try:
    Sandbox()
    raise SystemExit("not refused")
except SandboxError as error:
    assert "its own network and processes" in str(error) and "--weak-sandbox" in str(error), error
weak = Sandbox(weak=True)
assert "its own network and processes" in weak.refused
assert weak.run("assert True").passed and not weak.run("assert False").passed
"""


def test_without_isolation_nothing_is_run() -> None:
    """Fails if programs run although the kernel refuses namespaces, or the option named in the error does not work."""
    ran = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
