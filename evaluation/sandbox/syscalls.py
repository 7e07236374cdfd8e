"""A seccomp filter that refuses system calls to candidate code.

    code = refusals("x86_64")       # bytes, 8 per instruction; empty for a processor that is not known here

It refuses calls that hold memory which no limit of a process counts (memory files, shared memory and queues of System V
and POSIX, shared anonymous memory), sockets other than IPv4 and IPv6 (namespaces do not cover Unix sockets in the file
system, nor sockets to a virtual machine's host), and calls that ordinary programs do not need: the user's keys,
io_uring, bpf and performance counters.
"""

import errno
import struct
from typing import NamedTuple

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in the kernel's struct seccomp_data
_X32 = 0x40000000  # the first number of x86-64's second set of calls

_REFUSED = (
    *("shmget", "semget", "msgget", "mq_open", "memfd_create", "memfd_secret", "add_key", "request_key", "keyctl"),
    *("userfaultfd", "perf_event_open", "bpf", "io_uring_setup"),
)


class _Only(NamedTuple):
    """A call that is allowed only if an argument, after masking, is one of `values`."""

    call: str
    argument: int
    mask: int
    values: tuple[int, ...]


_SHARED, _ANONYMOUS, _STREAM, _PACKETS, _IPV4, _IPV6 = 1, 0x20, 1, 5, 2, 10
_LIMITED = (
    _Only("mmap", 3, _SHARED | _ANONYMOUS, (0, _SHARED, _ANONYMOUS)),
    _Only("socket", 0, 0xFFFFFFFF, (_IPV4, _IPV6)),
    _Only("socketpair", 1, 0xF, (_STREAM, _PACKETS)),  # a datagram socket of a pair could be connected elsewhere
)
_NUMBERS = {
    "x86_64": {
        "mmap": 9, "shmget": 29, "socket": 41, "socketpair": 53, "semget": 64, "msgget": 68, "mq_open": 240,
        "add_key": 248, "request_key": 249, "keyctl": 250, "perf_event_open": 298, "memfd_create": 319, "bpf": 321,
        "userfaultfd": 323, "io_uring_setup": 425, "memfd_secret": 447,
    },
    "aarch64": {
        "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199, "add_key":
        217, "request_key": 218, "keyctl": 219, "mmap": 222, "perf_event_open": 241, "memfd_create": 279, "bpf":
        280, "userfaultfd": 282, "io_uring_setup": 425, "memfd_secret": 447,
    },
}  # fmt: skip
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def refusals(machine: str) -> bytes:
    """The filter for a processor, by its name in `uname`; empty for an unknown one."""
    if machine not in _NUMBERS:
        return b""
    numbers = _NUMBERS[machine]
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    missing = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
    code = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, _MACHINES[machine]), missing]
    code += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), missing]
    for name in _REFUSED:
        code += [(_EQUAL, 0, 1, numbers[name]), refuse]
    for call, argument, mask, values in _LIMITED:
        check = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_AND, 0, 0, mask)]
        check += [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
        check += [refuse, (_RETURN, 0, 0, _ALLOW)]
        code += [(_EQUAL, 0, len(check), numbers[call]), *check]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in code)
