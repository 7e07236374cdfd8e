"""`Worker`: runs parts in a process of its own, so that a crash does not end the other parts.

    with Worker(setup) as worker:
        result = worker.run("gpu.decode:eager", seconds=30, found={})

If a part crashes the process, breaks the GPU's context or does not end, this is reported as its error, and the next
part starts in a fresh process. `Here` runs parts in this process, for a rehearsal.
"""

import traceback
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from gpu.session import Session, Setup

_OWN = ("dpad", "gpu")  # if these modules are missing, it is an error and not a missing library
_GRACE = 5.0  # seconds after a part's own time until its process is killed


class Here:
    """Runs parts in this process, one after another."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._session = Session(setup)

    def run(self, part: str, seconds: float, found: dict[str, Any]) -> dict[str, Any]:
        """Run `part`, "module:function", which has `seconds`; returns its result."""
        return run_part(self._session, part, seconds, found)

    def close(self) -> None:
        """Close everything that the parts opened."""
        self._session.opened.close()
        self._session = Session(self._setup)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Worker(Here):
    """Runs parts in another process, which starts with the first of them."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._process: Any = None

    def run(self, part: str, seconds: float, found: dict[str, Any]) -> dict[str, Any]:
        """Run `part` as `Here.run` does; if the process dies or does not answer, that is the part's error."""
        if self._process is None:
            self._begin()
        self._pipe.send((part, seconds, found))
        try:
            if not self._pipe.poll(max(seconds, 0.0) + _GRACE):
                return self._spoiled(f"did not end within {seconds:.0f} s")
            result: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return self._spoiled(f"its process died (exit status {self._process.exitcode})")
        if "error" in result:
            self.close()
        return result

    def _begin(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._setup), daemon=False)
        self._process.start()
        theirs.close()

    def _spoiled(self, why: str) -> dict[str, Any]:
        self._process.kill()
        self._end()
        return {"error": why}

    def close(self) -> None:
        """End the process; the next part starts another one."""
        if self._process is None:
            return
        try:
            self._pipe.send(None)
        except OSError:
            self._process.kill()
        self._process.join(_GRACE)
        if self._process.is_alive():
            self._process.kill()
        self._end()

    def _end(self) -> None:
        self._process.join()
        self._pipe.close()
        self._process = None


def _serve(pipe: Connection, setup: Setup) -> None:
    session = Session(setup)
    while (asked := pipe.recv()) is not None:
        pipe.send(run_part(session, *asked))
    session.opened.close()


def run_part(session: Session, part: str, seconds: float, found: dict[str, Any]) -> dict[str, Any]:
    """Run a part; returns its document, or why it was skipped, or its error."""
    session.begin(seconds, found)
    module, _, function = part.partition(":")
    try:
        result: dict[str, Any] = getattr(import_module(module), function)(session)
        return result
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith(_OWN):
            return {"skipped": f"{error.name} is not installed"}
        traceback.print_exc()
        return {"error": told(error)}


def told(error: Exception) -> str:
    """An error in one line, cut to 600 characters; the traceback is on standard error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
