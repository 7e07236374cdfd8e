"""Malicious candidate programs: what they can read, allocate and leave behind, as root and as another user."""

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Tally, fuzz

from dpad.evaluation.errors import SandboxError
from dpad.evaluation.sandbox.removal import remove
from dpad.evaluation.sandbox.sandbox import Limits, Sandbox

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # on disks deep folders take seconds
LIMITS = Limits(seconds=5, memory=256 << 20, processes=12, output=1 << 16)
NEST = "import os\nfor _ in range(1500):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)\n"
LITTER = (
    "import os, socket\n"
    "for name in (b'\\xff\\n', b'-rf', b'~', b' '):\n    os.mkdir(name)\n    open(name + b'/x', 'w')\n"
    "os.mkfifo('pipe')\nos.symlink('/', 'root')\nos.symlink('..', 'up')\nos.symlink('loop', 'loop')\n"
    "open('file', 'w')\nos.link('file', 'again')\nos.makedirs('a/b/c')\nos.chmod('a/b', 0)\nos.chmod('a', 0)\n"
    "os.chmod('.', 0)\n"
)
CLIBRARY = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
CROWD = (
    "import os, time\nfor _ in range(6):\n    if not os.fork():\n        held = bytearray(100 << 20)\n"
    "        time.sleep(60)\ntime.sleep(60)\n"
)
HELD = {
    "memory file": "import os\nos.memfd_create('x')",
    "System V": f"{CLIBRARY}assert libc.shmget(0, 1 << 20, 0o1600) >= 0",
    "messages": f"{CLIBRARY}assert libc.msgget(0, 0o1600) >= 0",
    "shared": "import mmap\nmmap.mmap(-1, 1 << 20)",
    "POSIX": "open('/dev/shm/x', 'w')",
    "zeros": "open('/dev/zero', 'rb')",
    "mount": f"{CLIBRARY}assert libc.mount(b'x', b'.', b'tmpfs', 0, None) == 0",
    "namespaces": f"{CLIBRARY}assert libc.unshare(0x10020000) == 0",
    "files": "for number in range(200):\n    open(str(number), 'w').write('x' * 60_000)",
    "names": "for number in range(40_000):\n    open(str(number), 'w')",
    "io_uring": f"{CLIBRARY}assert libc.syscall(425, 8, bytes(120)) >= 0",
    "keys": f"{CLIBRARY}assert libc.syscall(250, 0, -3, 1) >= 0",
    "crowd": CROWD,
}
REACHED = {
    "passwords": "open('/etc/passwd').read()",
    "processes": "import os\nos.listdir('/proc')",
    "folders": "import os\nos.listdir('/')",
    "virtual machine": "import socket\nsocket.socket(40, socket.SOCK_STREAM)",
    "datagrams": "import socket\nsocket.socketpair(type=socket.SOCK_DGRAM)",
    "root": "import os\nos.setuid(0)",
    "groups": "import os\nos.setgroups([0])",
    "first process": "import os\nos.kill(1, 9)",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(LIMITS)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [*HELD, *REACHED])
def test_what_must_not_succeed_does_not(sandbox: Sandbox, name: str) -> None:
    """Fails if a program can hold memory that no limit counts, or access something outside."""
    verdict = sandbox.run((HELD | REACHED)[name])
    assert not verdict.passed
    assert ("more than 256 MiB of memory in all its processes" in verdict.detail) == (name == "crowd"), verdict


@pytest.mark.parametrize(
    "program",
    [
        "import os, time\nheld = bytearray(b'x' * (60 << 20))\nfor _ in range(6):\n"
        "    if not os.fork():\n        time.sleep(0.2)\n        os._exit(0)\ntime.sleep(0.2)",
        "import numpy\nassert (numpy.eye(99) @ numpy.ones(99)).sum() == 99",
        "import subprocess, sys\nassert subprocess.check_output([sys.executable, '-c', 'print(1)']) == b'1\\n'",
        "import os\nassert os.system('exit 3') == 3 << 8",
        "import multiprocessing\nchild = multiprocessing.get_context('fork').Process(target=print)\n"
        "child.start()\nchild.join()\nassert child.exitcode == 0",
        "import asyncio\nasyncio.run(asyncio.sleep(0))",
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    open(folder + '/x', 'w')",
        "import socket\nleft, right = socket.socketpair()\nleft.send(b'x')\nassert right.recv(1) == b'x'",
        "import ssl, sqlite3, lzma, decimal, hashlib, uuid, zoneinfo, unittest, random\nuuid.uuid4()",
        "import os\nassert len(os.urandom(8)) == 8 and open(os.devnull, 'w').write('x')",
        "import os\nassert os.listdir() == ['candidate.py']",
    ],
)
def test_ordinary_programs_run(sandbox: Sandbox, program: str) -> None:
    """Fails if the isolation breaks ordinary programs: packages, processes, temporary files, shared pages."""
    assert sandbox.run(program).passed, sandbox.run(program)


def test_files_and_sockets_of_the_user_are_out_of_reach(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a program can read a file of the user, or connect to a server's socket in the file system."""
    (tmp_path / "secret").write_text("secret")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket")
        server.listen()
        for program in (
            f"open({str(tmp_path / 'secret')!r}).read()",
            f"import os\nos.link({str(tmp_path / 'secret')!r}, 'mine')\nopen('mine').read()",
            f"import os\nos.symlink({str(tmp_path / 'secret')!r}, 'mine')\nopen('mine').read()",
            f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})",
        ):
            assert not sandbox.run(program).passed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")
def test_root_s_programs_have_none_of_its_rights(sandbox: Sandbox, tmp_path: Path) -> None:
    """Fails if a program run by root keeps an id, a group or a capability, or can change a file of root."""
    file = tmp_path / "file"
    file.write_text("x")
    file.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    status = "import os\nassert os.getresuid() == os.getresgid() == (65534,) * 3 and not os.getgroups()\n"
    sets = f"{CLIBRARY}head, sets = (ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)()\n"
    assert sandbox.run(status + sets + "assert libc.capget(head, sets) == 0 and not any(sets)").passed
    assert sandbox.run(f"{CLIBRARY}assert not any(libc.prctl(23, bit) > 0 for bit in range(41))").passed
    for act in ("chmod({}, 0o4777)", "chown({}, 65534, 65534)", "utime({}, (1, 1))", "truncate({}, 0)", "open({}, 2)"):
        assert not sandbox.run(f"import os\nos.{act.format(repr(str(file)))}").passed, act
    assert not sandbox.run("open('/etc/shadow').read()").passed
    kept = file.stat()
    assert (stat.S_IMODE(kept.st_mode), kept.st_uid, kept.st_size) == (0o600, 0, 1) and kept.st_mtime > 1


USER = f"""
import json, os, sys
import dpad.evaluation.sandbox.sandbox as module
attacks, secret, expected = json.loads(sys.argv[1])
os.setgroups([])
os.setresgid(4321, 4321, 4321)
os.setresuid(4321, 4321, 4321)
sys.executable = "/usr/bin/python3"
sys.prefix = sys.base_prefix = sys.exec_prefix = sys.base_exec_prefix = "/usr"
sandbox = module.Sandbox(module.{LIMITS})
assert not sandbox.refused and sandbox.run("assert True").passed
for program in attacks:
    assert not sandbox.run(program).passed, program
assert not sandbox.run(f"open({{secret!r}}).read()").passed
assert sandbox.run({NEST + LITTER!r}).passed and not sandbox.left, sandbox.left
"""


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="it takes root, and its Python")
def test_any_user_s_programs_are_kept_in(sandbox: Sandbox, tmp_path: Path) -> None:
    """Fails if programs of another user are less isolated than those of root."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    os.chown(secret, 4321, 4321)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    attacks = [*HELD.values(), *REACHED.values()]
    command = [sys.executable, "-c", USER, json.dumps([attacks, str(secret), ""])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot be isolated" in ran.stderr:
        pytest.skip(ran.stderr.splitlines()[-1])
    assert ran.returncode == 0, ran.stderr


WEAK = f"""
import ctypes, sys, tempfile
ctypes.CDLL(None).unshare(0x10000000)  # inside, without an identity of its own, the kernel refuses more namespaces
tempfile.tempdir = sys.argv[1]
from dpad.evaluation.sandbox.sandbox import Limits, Sandbox
sandbox = Sandbox({LIMITS}, weak=True)
assert "its own network and processes" in sandbox.refused
for program in {[NEST, LITTER, NEST + "import os; os.chmod('.', 0)"]!r}:
    assert sandbox.run(program).passed, program
assert "memory in all" in sandbox.run({CROWD!r}).detail
assert not sandbox.run("open('/etc/passwd')").passed
assert not sandbox.left, sandbox.left
"""


def test_without_a_file_system_of_its_own_nothing_is_left_either() -> None:
    """Fails if files that a program leaves on the disk stay there, or stop the run."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as outside:
        ran = subprocess.run([sys.executable, "-c", WEAK, outside], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert os.listdir(outside) == []


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def test_folders_are_removed_and_links_are_not_followed(place: Path) -> None:
    """Fails if depth, permissions or names stop the removal, or it follows a link."""
    kept = place / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    folder = place / "folder"
    folder.mkdir()
    program = f"{NEST}import os, sys\nos.chdir(sys.argv[1])\nos.symlink(sys.argv[2], 'link')\n{LITTER}"
    subprocess.run([sys.executable, "-c", program, folder, kept], cwd=folder, check=True)
    assert remove(folder) == ""
    assert remove(folder).endswith("cannot be opened (No such file or directory)")
    assert [path.name for path in place.iterdir()] == ["kept"] and (kept / "file").read_text() == "x"
    (place / "link").symlink_to(kept)
    assert "cannot be opened" in remove(place / "link") and (kept / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and make files immutable")
def test_what_cannot_be_removed_is_said(tmp_path: Path) -> None:
    """Fails if clean-up raises, or does not report files that it cannot remove."""
    (tmp_path / "folder" / "mounted").mkdir(parents=True)
    (tmp_path / "folder" / "other").touch()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "folder" / "mounted"], check=True)
    try:
        assert "could not be removed (Device or resource busy); remove it by hand" in remove(tmp_path / "folder")
    finally:
        subprocess.run(["umount", tmp_path / "folder" / "mounted"], check=True)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mounted"]


def test_a_killed_evaluation_leaves_no_programs(sandbox: Sandbox, tmp_path: Path) -> None:
    """Fails if a program continues after the evaluation that started it was killed."""
    code = (
        "from dpad.evaluation.sandbox.sandbox import *\nSandbox(Limits(seconds=99)).run('import time; time.sleep(99)')"
    )
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        marks = [b"launcher.py", f'"parent": {process.pid},'.encode()]
        until = time.monotonic() + 60
        while len(_commands(marks)) < 3:  # the launcher, the first process, the program
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    while _commands(marks):
        assert time.monotonic() < until
        time.sleep(0.05)


def _commands(marks: list[bytes]) -> list[bytes]:
    """The command lines of running processes that contain all of `marks`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        found += [command] if all(mark in command for mark in marks) else []
    return found


@fuzz(short=6, long=200)
def test_mixed_attacks(
    mutants: int, tally: Tally, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if programs that combine attacks end the run, change anything outside, or leave anything behind."""
    snippets = [NEST, LITTER, *HELD.values(), *REACHED.values(), "os.setsid()", "os.fork()", "os._exit(0)"]
    snippets += ["import signal\nsignal.alarm(1)", "while True: pass", "raise SystemExit(0)", "bytearray(1 << 40)"]
    snippets += [f"open({str(tmp_path / 'file')!r}, 'w')", f"os.chmod({str(tmp_path / 'file')!r}, 0o777)"]
    (tmp_path / "file").write_text("kept")
    (tmp_path / "programs").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "programs"))
    quick = Sandbox(Limits(seconds=1, memory=256 << 20, processes=12, output=1 << 16))
    for number in range(mutants):
        rng = random.Random(number)
        parts = [_guarded(rng.choice(snippets), rng.random() < 0.3) for _ in range(rng.randint(1, 6))]
        verdict = tally.attempt(f"mutant {number}", lambda: quick.run("import os\n" + "".join(parts)))  # noqa: B023
        assert verdict is not None and not quick.left, number
        assert (tmp_path / "file").read_text() == "kept"
    assert _commands([b"launcher.py", f'"parent": {os.getpid()},'.encode()]) == []
    assert list((tmp_path / "programs").iterdir()) == []


def _guarded(snippet: str, bare: bool) -> str:
    lines = "".join(f"    {line}\n" for line in snippet.splitlines())
    return snippet + "\n" if bare else f"try:\n{lines}except BaseException:\n    pass\n"
