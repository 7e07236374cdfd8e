"""Runs one candidate program under limits; started by `sandbox.py` as a script of its own.

    python -I launcher.py SETTINGS      # the program is candidate.py in the working directory

It imports nothing of this package, because `python -I` would not find it. First the process leaves the
network and the list of processes behind (namespaces), then a child becomes the first process of the new
list and only waits for the candidate: when it ends or is killed, the kernel kills all that the candidate
has started. The candidate may write below its working directory only (Landlock).
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38  # prctl
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on every platform
_PATH_BENEATH = 1
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make files, folders, links, devices
_NOBODY = 65534


def main() -> NoReturn:
    """Isolate, start the candidate, and end as it ended; status 3 says that the kernel refused a part."""
    settings = json.loads(sys.argv[1])
    if os.getuid() == 0:
        os.setresuid(_NOBODY, -1, -1)  # the kernel does not count the processes of root
    _isolate(settings["weak"], "its own network and processes", _leave_namespaces)
    first = os.fork()
    if first:
        _end_as(first)
    _must(_LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    candidate = os.fork()
    if candidate:
        os.close(settings["report"])
        _end_as(candidate)
    _isolate(settings["weak"], "files outside its folder", _forbid_changes)
    for name, value in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    _run(settings["token"], settings["report"])


def _isolate(weak: bool, what: str, act: Callable[[], None]) -> None:
    """Do a part of the isolation; where the kernel refuses, say so and end, or go on if `weak`."""
    try:
        act()
    except OSError as error:
        sys.stderr.write(f"{what}: {error}\n")
        sys.stderr.flush()
        if not weak:
            os._exit(3)


def _leave_namespaces() -> None:
    _must(_LIBC.unshare(_NEW_USER | _NEW_NET | _NEW_PID | _NEW_IPC))


def _forbid_changes() -> None:
    """Let this process and its children change files below the working directory only."""
    version = _must(_LIBC.syscall(_CREATE_RULESET, None, 0, 1))
    changes = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = _must(_LIBC.syscall(_CREATE_RULESET, struct.pack("Q", changes), 8, 0))
    for path, allowed in ((".", changes), (os.devnull, changes & (_WRITE_FILE | _TRUNCATE))):
        place = os.open(path, os.O_PATH)
        _must(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0))
        os.close(place)
    _must(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _must(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _run(token: int, report: int) -> NoReturn:
    """Run candidate.py; only after its last line is the token fetched from one pipe and put into the other."""
    module: Any = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    sys.argv = ["candidate.py"]
    try:
        with open("candidate.py", encoding="utf-8") as file:
            program = file.read()
        exec(compile(program, "candidate.py", "exec"), module.__dict__)  # noqa: S102
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os.write(report, os.read(token, 64))
    os._exit(0)


def _end_as(pid: int) -> NoReturn:
    """Wait for a child and end with its status, 128 and the signal's number if one killed it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _must(result: int) -> int:
    """`result` of a call into libc; raises `OSError` where it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()
