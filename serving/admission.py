"""`Admission`: how many sequences may be here at a time, and when to come again for who finds no room.

    admission = Admission(most=40)
    with admission.hold(2):         # raises ApiError 429 with a Retry-After where there is no room for two
        ...

It is asked before a prompt is read, so that refusing costs nothing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from dpad.runtime.show import counted
from dpad.serving.errors import ApiError

_LATEST = 60  # seconds: the longest wait that is told
_MEMORY = 0.9  # how much of what was learnt about the pace stays with each sequence that leaves


class Admission:
    """Counts sequences from their request to their end."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0
        self.draining = False
        self._interval = 0.0  # seconds between two that leave, while there are any
        self._left = perf_counter()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Room for `count` sequences; raises `ApiError`: 503 where the server ends, 429 where it is full.

        What would never fit is 400, so that nobody comes again with it.
        """
        if self.draining:
            raise ApiError(503, "this server is ending; ask another one", "draining", retry_after=1)
        if count > self.most:
            many = counted(count, "sequence")
            raise ApiError(400, f"{many} are more than the {self.most} that may be here; ask for fewer", "too_many")
        if self.inside + count > self.most:
            raise ApiError(
                429,
                f"{counted(count, 'sequence')} came, {self.inside} are here already, and {self.most} may be; "
                "come again later, as Retry-After says, or ask for fewer",
                "queue_full",
                retry_after=self.retry_after(),
            )
        if not self.inside:
            self._left = perf_counter()
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
            self._learn(count)

    def retry_after(self) -> int:
        """Seconds until those who are here will have left, at the pace of the last ones."""
        return min(_LATEST, max(1, math.ceil(self.inside * self._interval)))

    def _learn(self, count: int) -> None:
        now = perf_counter()
        interval, self._left = (now - self._left) / count, now
        memory = _MEMORY**count if self._interval else 0.0
        self._interval = memory * self._interval + (1 - memory) * interval
