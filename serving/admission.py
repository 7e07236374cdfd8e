"""`Admission` limits the sequences in the server, and says when a refused request may be sent again.

    admission = Admission(most=40)
    with admission.hold(2):         # raises ApiError 429 with a Retry-After where there is no room for two
        ...

It decides before a prompt is read, so that a refusal costs nothing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from dpad.runtime.show import counted
from dpad.serving.errors import ApiError

_LATEST = 60  # seconds: the longest Retry-After
_MEMORY = 0.9  # weight of the earlier average of the pace, for each sequence that leaves


class Admission:
    """Counts sequences from their request to their end."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0
        self.draining = False
        self._interval = 0.0  # average seconds between two sequences that leave
        self._left = perf_counter()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold room for `count` sequences.

        Raises `ApiError`: 503 if the server is ending, 429 if it is full, and 400 if `count` can never fit, so that
        clients do not repeat the request.
        """
        if self.draining:
            raise ApiError(503, "this server is ending; ask another one", "draining", retry_after=1)
        if count > self.most:
            many = counted(count, "sequence")
            raise ApiError(
                400, f"{many} are more than the {self.most} that this server holds; ask for fewer", "too_many"
            )
        if self.inside + count > self.most:
            raise ApiError(
                429,
                f"{counted(count, 'sequence')} came, and the server holds {self.inside} of at most {self.most}; "
                "try again after the seconds of Retry-After, or ask for fewer",
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
        """Seconds until the current sequences will have left, at the recent pace."""
        return min(_LATEST, max(1, math.ceil(self.inside * self._interval)))

    def _learn(self, count: int) -> None:
        now = perf_counter()
        interval, self._left = (now - self._left) / count, now
        memory = _MEMORY**count if self._interval else 0.0
        self._interval = memory * self._interval + (1 - memory) * interval
