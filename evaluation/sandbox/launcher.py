"""Runs one candidate program under limits; started by `sandbox.py` as a script of its own.

    python -I launcher.py SETTINGS      # the program is candidate.py in the working directory

It imports nothing from this package, because `python -I` would not find it. First the process enters new namespaces,
which have no network, no other processes and their own mounts, and mounts a small file system over the working
directory. Then it starts a child, the first process of the new PID namespace, which only waits for the candidate: when
this child ends or is killed, the kernel kills every process that the candidate has started. The candidate gives up all
ids and capabilities. It may read only what Python needs and write only below its working directory (Landlock), and it
may not use system calls that hold memory which no limit counts (seccomp).
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
from contextlib import suppress
from typing import Any, NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_NO_SETUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18  # mount
_PARENT_DEATH_SIGNAL, _SECCOMP, _DROP_BOUNDING, _SECURE_BITS, _NO_NEW_PRIVILEGES = 1, 22, 24, 28, 38  # prctl
_AMBIENT, _CLEAR_AMBIENT = 47, 4
_NO_ROOT_LOCKED = 0xEF  # user 0 has no privileges, capabilities are neither kept nor raised, and this is locked
_CAPABILITIES = 0x20080522  # version 3 of the sets
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on every platform
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = (1 << bit for bit in range(4))
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make files, folders, links, devices
_READS = _EXECUTE | _READ_FILE | _READ_FOLDER
_SCOPES = 3  # abstract Unix sockets and signals
_NOBODY = 65534


def main() -> NoReturn:
    """Isolate, start the candidate, and exit with its status; status 3 means that the kernel refused a part."""
    settings = json.loads(sys.argv[1])
    weak, root = settings["weak"], os.geteuid() == 0
    with open("candidate.py", encoding="utf-8") as file:
        program = file.read()
    alone = _isolate(weak, "its own network and processes", lambda: _leave_namespaces(root))
    _end_with(settings["parent"])
    own = alone and _isolate(weak, "a file system of its own", lambda: _mount(settings, root))
    if root and not own:
        os.chown(".", _NOBODY, _NOBODY)
    with open("candidate.py", "w", encoding="utf-8") as file:
        file.write(program)
    first = os.fork()
    if first:
        _end_as(first)
    if root:
        _isolate(weak, "another user than root", _leave_root)
    _end_with(None)
    candidate = os.fork()
    if candidate:
        os.close(settings["report"])
        _end_as(candidate)
    if alone:
        _isolate(weak, "no more namespaces", lambda: _must(_LIBC.unshare(_NEW_USER)))
    _isolate(weak, "no capabilities", _drop_capabilities)
    for name, value in settings["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)  # a stricter limit is kept
        resource.setrlimit(kind, (most, most))
    _isolate(weak, "files outside its folder", lambda: _confine(settings["readable"]))
    _isolate(weak, "memory and sockets by system call", lambda: _filter(bytes.fromhex(settings["filter"])))
    _run(program, settings["token"], settings["report"])


def _isolate(weak: bool, what: str, act: Callable[[], object]) -> bool:
    """Do a part of the isolation; if the kernel refuses, write what failed and exit, or go on if `weak`."""
    try:
        act()
    except OSError as error:
        sys.stderr.write(f"{what}: {error}\n")
        sys.stderr.flush()
        if not weak:
            os._exit(3)
        return False
    return True


def _end_with(parent: int | None) -> None:
    """Have the kernel kill this process when its parent ends; exit if that is not `parent`. None is any parent."""
    _must(_LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if parent is not None and os.getppid() != parent:
        os._exit(3)


def _leave_namespaces(root: bool) -> None:
    """Enter new namespaces. The user namespace maps only this user or, for root, root and nobody.

    A helper process outside writes the maps, because this process has lost the right to do so.
    """
    user, group = os.geteuid(), os.getegid()
    go, ready = os.pipe()
    helper = os.fork()
    if not helper:
        os.close(ready)
        os._exit(_write_ids(os.getppid(), user, group) if os.read(go, 1) else 0)
    os.close(go)
    try:
        kinds = _NEW_USER | _NEW_MOUNTS | _NEW_NET | _NEW_PID | _NEW_IPC | _NEW_UTS | _NEW_CGROUP
        _must(_LIBC.unshare(kinds))
        os.write(ready, b"1")
    finally:
        os.close(ready)
        failed = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if failed:
        raise OSError(failed, os.strerror(failed))


def _write_ids(process: int, user: int, group: int) -> int:
    """Write the id maps of `process`; returns 0 or an errno."""
    files = {"setgroups": "deny", "uid_map": f"{user} {user} 1\n", "gid_map": f"{group} {group} 1\n"}
    if user == 0:
        files = dict.fromkeys(("uid_map", "gid_map"), f"0 0 1\n{_NOBODY} {_NOBODY} 1\n")
    try:
        for name, text in files.items():
            with open(f"/proc/{process}/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        return error.errno or 1
    return 0


def _mount(settings: dict[str, Any], root: bool) -> None:
    """Mount a small file system over the working directory, and make Python's files reachable for other users.

    A folder that only root may enter, such as /root, is covered by an empty one, into which only the paths that Python
    needs are mounted.
    """
    folder = os.getcwd()
    _attach(None, "/", None, _RECURSIVE | _PRIVATE)
    for closed, needed in settings["closed"].items():
        held = {path: (os.open(path, os.O_PATH), os.path.isdir(path)) for path in needed}
        _attach("tmpfs", closed, "tmpfs", _NO_SETUID | _NO_DEVICES, "size=1m,mode=755")
        for path, (place, is_folder) in held.items():
            os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
            if not is_folder:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            _attach(f"/proc/self/fd/{place}", path, None, _BIND | _RECURSIVE)
            os.close(place)
    os.makedirs(folder, exist_ok=True)
    owner = f",uid={_NOBODY},gid={_NOBODY}" if root else ""
    _attach("tmpfs", folder, "tmpfs", _NO_SETUID | _NO_DEVICES, f"{settings['disk']},mode=700{owner}")
    os.chdir(folder)


def _attach(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _must(_LIBC.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))


def _leave_root() -> None:
    """Become user nobody, without other groups; this also drops all capabilities."""
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _drop_capabilities() -> None:
    """Drop all capabilities for good. Some calls may fail without privileges, but then there is nothing to drop."""
    _must(_LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _LIBC.prctl(_AMBIENT, _CLEAR_AMBIENT, 0, 0, 0)
    for capability in range(64):
        _LIBC.prctl(_DROP_BOUNDING, capability, 0, 0, 0)
    _LIBC.prctl(_SECURE_BITS, _NO_ROOT_LOCKED, 0, 0, 0)
    _must(_LIBC.capset(struct.pack("Ii", _CAPABILITIES, 0), bytes(24)))


def _confine(readable: list[str]) -> None:
    """Let this process and its children read only `readable` paths, and change only files in the working directory."""
    version = _must(_LIBC.syscall(_CREATE_RULESET, None, 0, 1))
    changes = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = struct.pack("QQQ", _READS | changes, 0, _SCOPES) if version >= 6 else struct.pack("Q", _READS | changes)
    ruleset = _must(_LIBC.syscall(_CREATE_RULESET, handled, len(handled), 0))
    null = _READ_FILE | changes & (_WRITE_FILE | _TRUNCATE)
    rules = [(".", _READS | changes), (os.devnull, null), *((path, _READS) for path in readable)]
    for path, allowed in rules:
        with suppress(FileNotFoundError, PermissionError):  # a path that cannot be reached needs no rule
            place = os.open(path, os.O_PATH)
            if not os.path.isdir(path):
                allowed &= ~_READ_FOLDER
            _must(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0))
            os.close(place)
    _must(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _filter(program: bytes) -> None:
    """Install a seccomp filter of 8-byte instructions; raises `OSError` if it is empty, as for an unknown processor."""
    if not program:
        raise OSError(0, f"no filter for {os.uname().machine}")
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _must(_LIBC.prctl(_SECCOMP, 2, head, 0, 0))


def _run(program: str, token: int, report: int) -> NoReturn:
    """Run the program; after its last line, and only then, copy the token from one pipe to the other."""
    module: Any = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    sys.argv = ["candidate.py"]
    try:
        exec(compile(program, "candidate.py", "exec"), module.__dict__)  # noqa: S102
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os.write(report, os.read(token, 64))
    os._exit(0)


def _end_as(pid: int) -> NoReturn:
    """Wait for a child and exit with its status, or with 128 plus the number of the signal that killed it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _must(result: int) -> int:
    """Return the `result` of a libc call; raises `OSError` if the call failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()
