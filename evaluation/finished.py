"""`finished` runs sequences together and yields each when it has ended, with the seconds that it took.

for sequence, seconds in finished(model, sequences, lambda sequence: f"sample {sequence.index + 1}"):
    ...
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from time import perf_counter
from typing import TypeVar

from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.model import DiffusionModel

Ended = TypeVar("Ended", bound=Sequence)


def finished(
    model: DiffusionModel, sequences: Iterable[Ended], name: Callable[[Ended], str]
) -> Iterator[tuple[Ended, float]]:
    """Run `sequences`; yields each with its seconds, in the order in which they end.

    Sequences share passes, so the time from a sequence's start to its end does not measure its cost. Its seconds count
    from the previous sequence's end, or from its own start if that was later. They add up to the time in which
    anything was decoded; for a sequence that runs alone they are its own time.

    Raises the error that ended a sequence, with its `name` before the message; the others are cancelled.
    """
    given: dict[Ended, float] = {}

    def timed() -> Iterator[Ended]:
        for sequence in sequences:
            given[sequence] = perf_counter()
            yield sequence

    last = 0.0
    with closing(model.run(timed())) as outcomes:
        for outcome in outcomes:
            sequence, error = outcome.sequence, outcome.error
            if error is not None:
                error.args = (f"{name(sequence)}: {error}",)
                raise error
            yield sequence, sequence.ended - max(last, given.pop(sequence))
            last = sequence.ended
