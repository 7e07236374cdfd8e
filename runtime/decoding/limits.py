"""How many sequences may be with a scheduler, and how many are.

limits(max_running=None, max_waiting=64)        # checked, by their names
"""

from typing import Any, NamedTuple

from dpad.runtime.arguments import reading
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import shown

RUNNING = 4  # times the sequences of a pass: then most passes find enough that share them, and short requests a seat
WAITING = 4096


class Status(NamedTuple):
    """How much there is to do now: sequences that run and that wait, slots of the pool in use, passes made so far."""

    running: int
    waiting: int
    slots: int
    passes: int


@reading("a limit")
def limits(max_running: object, max_waiting: object) -> dict[str, Any]:
    """The limits of a scheduler by their names; raises `InvalidRequest` for what is none."""
    read = {
        "max_running": as_integer(max_running, "max_running"),
        "max_waiting": as_integer(max_waiting, "max_waiting"),
    }
    for (name, value), least in zip(read.items(), (1, 0)):
        if not (is_integer(value) and value >= least) and not (value is None and name == "max_running"):
            raise InvalidRequest(f"{name} {shown(value)} must be an integer, {least} or more")
    return read
