"""Parts for `gpu_check`'s workers that do what parts should not, and need no library."""

import os
import time
from typing import Any

from gpu.session import Session


def counts(session: Session) -> dict[str, Any]:
    """How often this process was asked, and what it was told of the parts before."""
    made = session.once(_list)
    made.append(1)
    return {"asked": len(made), "process": os.getpid(), "found": list(session.found), "left": session.left()}


def dies(session: Session) -> dict[str, Any]:
    """Ends its process, as a crash of a driver does."""
    os._exit(3)


def sleeps(session: Session) -> dict[str, Any]:
    """Never ends, as a kernel may that waits for itself."""
    time.sleep(600)
    return {}


def raises(session: Session) -> dict[str, Any]:
    """Fails."""
    raise ValueError("no")


def _list(session: Session) -> list[int]:
    return []
