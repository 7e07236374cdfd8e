"""Measures the memory of a process and its descendants, from /proc.

    used(process.pid)       # bytes

A limit of the address space does not suffice, because it applies to each process: sixteen processes may hold sixteen
times as much.
"""

import os
from collections.abc import Iterator
from contextlib import suppress


def can_be_read() -> bool:
    """Whether this kernel lists the children of a process."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def used(pid: int, limit: int = 0) -> int:
    """Bytes of `pid` and its descendants, in memory or swapped out.

    Shared memory is counted in each process. If that sum is above `limit`, it is counted once, which is exact but
    takes longer.
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
    """The process's proportional share of its memory; all of its memory, if the kernel does not report the share."""
    part = _sum(process, "smaps_rollup", "Pss:", "SwapPss:")
    return part or _sum(process, "status", "VmRSS:", "VmSwap:")


def _sum(process: str, file: str, *names: str) -> int:
    """Sum, in bytes, of the lines that begin with one of `names`; the file has KiB."""
    lines = (line.split() for line in _read(f"/proc/{process}/{file}").splitlines())
    return sum(int(line[1]) for line in lines if line and line[0] in names) * 1024


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # the process has ended
        return ""
