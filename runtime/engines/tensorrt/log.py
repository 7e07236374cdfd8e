r"""The logger that TensorRT and TensorRT-RTX are given: it keeps errors for an exception and prints nothing.

logger = make_logger(trt)
raise EngineError("...:\n" + logger.words())
"""

from collections import deque
from collections.abc import Callable
from typing import Any

_KEPT = 20  # the last lines; one failure gives a handful


def make_logger(trt: Any, listen: Callable[[str], object] | None = None) -> Any:
    """A `trt.ILogger` with `problems` (its last error lines) and `words()` (them as text, then forgotten).

    `listen` is told every line, errors or not.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors; silent otherwise. Lines come from any thread."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if listen is not None:
                listen(message)
            if severity <= trt.ILogger.ERROR:
                self.problems.append(message)

        def words(self) -> str:
            lines = list(self.problems)
            self.problems.clear()
            return "\n".join(lines) or f"{trt.__name__} gave no reason"

    return Logger()
