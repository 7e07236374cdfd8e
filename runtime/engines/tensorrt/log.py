r"""The logger for TensorRT and TensorRT-RTX. It keeps errors for an exception and prints nothing.

logger = make_logger(trt)
raise EngineError("...:\n" + logger.words())

If the environment variable DPAD_TRT_LOG names a file, all but verbose lines are appended to it at once, so that the
file has the library's last lines before a crash. `dpad report` sets the variable.
"""

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LOG_FILE = "DPAD_TRT_LOG"
_KEPT = 20  # number of error lines kept, the last ones; one failure gives a handful


def make_logger(trt: Any, listen: Callable[[str], object] | None = None) -> Any:
    """A `trt.ILogger` with `problems`, its last error lines, and `words()`, which returns and clears them as text.

    `listen` is called with every line, errors or not.
    """

    file = os.environ.get(LOG_FILE)

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors and drops other lines. Any thread may log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if listen is not None:
                listen(message)
            if file and severity <= trt.ILogger.INFO:
                with suppress(OSError), open(file, "a", encoding="utf-8") as log:
                    log.write(f"{trt.__name__} {getattr(severity, 'name', severity)}: {message}\n")
            if severity <= trt.ILogger.ERROR:
                self.problems.append(message)

        def words(self) -> str:
            lines = list(self.problems)
            self.problems.clear()
            return "\n".join(lines) or f"{trt.__name__} gave no reason"

    return Logger()
