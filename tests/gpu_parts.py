"""Misbehaving parts for tests of `gpu_check`'s workers; they need no library."""

import os
import time
from typing import Any

from gpu.session import Session


def counts(session: Session) -> dict[str, Any]:
    """Returns the number of calls in this process, and the results of earlier parts that it got."""
    made = session.once(_list)
    made.append(1)
    return {"asked": len(made), "process": os.getpid(), "found": list(session.found), "left": session.left()}


def dies(session: Session) -> dict[str, Any]:
    """Ends its process, like a crash of the driver."""
    os._exit(3)


def sleeps(session: Session) -> dict[str, Any]:
    """Never ends, like a kernel in a deadlock."""
    time.sleep(600)
    return {}


def raises(session: Session) -> dict[str, Any]:
    """Raises an error."""
    raise ValueError("no")


def _list(session: Session) -> list[int]:
    return []
