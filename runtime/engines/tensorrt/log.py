r"""The logger that TensorRT and TensorRT-RTX are given: it keeps errors for an exception and prints nothing.

logger = make_logger(trt)
raise EngineError("...:\n" + logger.words())
"""

import re
from collections import deque
from typing import Any

_KEPT = 20  # the last lines; one failure gives a handful
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")  # a builder's words, once a profile


def make_logger(trt: Any) -> Any:
    """A `trt.ILogger` with `problems` (its last error lines) and `words()` (them as text, then forgotten).

    `activations` are the bytes of device memory beside the weights that a builder has named, 0 if it has not.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors; silent otherwise. Lines come from any thread."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=_KEPT)
            self.activations = 0

        def log(self, severity: Any, message: str) -> None:
            if found := _ACTIVATIONS.search(message):
                self.activations = max(self.activations, int(found[1]))
            if severity <= trt.ILogger.ERROR:
                self.problems.append(message)

        def words(self) -> str:
            lines = list(self.problems)
            self.problems.clear()
            return "\n".join(lines) or f"{trt.__name__} gave no reason"

    return Logger()
