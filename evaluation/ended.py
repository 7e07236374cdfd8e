"""`ended`: sequences that a model runs together, each when it has ended, with the time that it took.

for sequence, seconds in ended(model, sequences, lambda sequence: f"sample {sequence.index + 1}"):
    ...
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from time import perf_counter
from typing import TypeVar

from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.model import DiffusionModel

Ended = TypeVar("Ended", bound=Sequence)


def ended(
    model: DiffusionModel, sequences: Iterable[Ended], name: Callable[[Ended], str]
) -> Iterator[tuple[Ended, float]]:
    """Each of `sequences` in the order of their ends, and its seconds.

    Sequences share passes, so a time of its own says nothing of what one cost. Its seconds are those since the end of
    the one before it, or since it was given to the model if that was later: they add up to the time in which anything
    was decoded, and are the sequence's own where it runs alone.

    Raises what ended one of them, with its `name` before the message; the others are cancelled.
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
