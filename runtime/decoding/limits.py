"""Limits on the sequences of a scheduler, and their current numbers.

limits(max_running=None, max_waiting=64)        # a dict of both, checked
"""

from typing import Any, NamedTuple

from dpad.runtime.arguments import reading
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import counted, shown

RUNNING = 4  # times max_batch by default: most passes find enough sequences to share, and short requests start soon
WAITING = 4096  # sequences that may wait, by default


class Status(NamedTuple):
    """Current load: running and waiting sequences, pool slots in use, and the passes made so far."""

    running: int
    waiting: int
    slots: int
    passes: int


@reading("a limit")
def limits(max_running: object, max_waiting: object) -> dict[str, Any]:
    """Check a scheduler's limits and return them by name; raises `InvalidRequest` for a value that is not a limit."""
    read = {
        "max_running": as_integer(max_running, "max_running"),
        "max_waiting": as_integer(max_waiting, "max_waiting"),
    }
    for (name, value), least in zip(read.items(), (1, 0)):
        if not (is_integer(value) and value >= least) and not (value is None and name == "max_running"):
            raise InvalidRequest(f"{name} {shown(value)} must be an integer, {least} or more")
    return read


def check_room(need: int, slots: int, engine: str) -> None:
    """Raise `InvalidRequest` for a sequence that needs more slots than the pool of `engine` has."""
    if need > slots:
        raise InvalidRequest(
            f"a sequence that keeps up to {counted(need, 'slot')} of keys and values cannot be served: "
            f"the pool of {engine} has {slots}; shorten it, or load the bundle with more slots"
        )
