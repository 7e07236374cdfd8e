"""What a process and all that it started hold in memory, read from /proc.

    used(process.pid)       # bytes

A limit of the address space is each process's own: sixteen of them hold sixteen times as much.
"""

import os
from collections.abc import Iterator
from contextlib import suppress


def can_be_read() -> bool:
    """Whether this kernel lists the children of a process."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def used(pid: int, limit: int = 0) -> int:
    """Bytes of `pid` and its descendants, in memory or swapped out; above `limit`, with what they share counted once.

    The second is exact and dearer, so it is asked only where the first is too much.
    """
    family = list(_family(pid))
    whole = sum(_sum(process, "status", "VmRSS:", "VmSwap:") for process in family)
    return whole if whole <= limit else sum(_part(process) for process in family)


def _family(pid: int) -> Iterator[str]:
    """A process and its descendants; those that end meanwhile may be left out."""
    left = [str(pid)]
    while left:
        process = left.pop()
        yield process
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                left += _read(f"/proc/{process}/task/{thread}/children").split()


def _part(process: str) -> int:
    """The process's part of what it holds; all of it, where the kernel does not say."""
    part = _sum(process, "smaps_rollup", "Pss:", "SwapPss:")
    return part or _sum(process, "status", "VmRSS:", "VmSwap:")


def _sum(process: str, file: str, *names: str) -> int:
    """Bytes of the lines that begin with one of `names`, which are in KiB."""
    lines = (line.split() for line in _read(f"/proc/{process}/{file}").splitlines())
    return sum(int(line[1]) for line in lines if line and line[0] in names) * 1024


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # it has ended
        return ""
