"""Calls a suffix schedule, which may be the caller's own class, and checks what it returns.

    check_schedule(schedule, gen_length, block_length)
    survivors(schedule, block, length, gen_length, rng)     # distances, int64, ascending, in [0, length)

If the schedule raises or returns a wrong value, the `InvalidRequest` names the schedule.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.arguments import listed, reading
from dpad.runtime.decoding.suffix import NOTHING, SuffixSchedule, Uniform
from dpad.runtime.errors import DpadError, InvalidRequest
from dpad.runtime.show import kind, shown, told


@reading("a schedule")
def check_is_schedule(value: object) -> None:
    """Raise `InvalidRequest` for a value without the methods of a `SuffixSchedule`, and for a class itself."""
    if isinstance(value, type) or not all(callable(getattr(value, name, None)) for name in ("check", "keep")):
        way_out = "dpad.Full() drops nothing"
        if listed(value) is not None:
            way_out = (
                "suffix positions go in as dpad.Explicit.from_positions(positions, prompt_length, block_length), "
                "where the prompt's length is len(model.request(prompt).prompt_ids)"
            )
        raise InvalidRequest(f"schedule {shown(value)} is not a suffix schedule, such as dpad.Gaussian(k=4); {way_out}")


def check_schedule(schedule: SuffixSchedule, gen_length: int, block_length: int) -> None:
    """Raise `InvalidRequest` unless `schedule` is one and can serve `gen_length` tokens in blocks of `block_length`."""
    check_is_schedule(schedule)
    with _blamed(schedule, "check"):
        schedule.check(gen_length, block_length)


def drops_all(schedule: SuffixSchedule) -> bool:
    """Whether `schedule` keeps no suffix at all, which block-causal models require."""
    return isinstance(schedule, Uniform) and schedule == NOTHING


def survivors(
    schedule: SuffixSchedule, block: int, length: int, gen_length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Distances [kept] that `schedule` keeps of the `length` masks behind `block`, ascending, int64."""
    with _blamed(schedule, "keep"):
        kept = np.asarray(schedule.keep(block, length, gen_length, rng))
    fault = _fault(kept, length)
    if fault:
        raise InvalidRequest(
            f"the method keep of schedule {shown(schedule)} returned {fault} for block {block}; "
            f"it must return ascending integers, each at least 0 and below {length}"
        )
    return kept.astype(np.int64, copy=False)


def _fault(kept: NDArray[Any], length: int) -> str | None:
    """What is wrong with the distances `kept`; None if nothing is."""
    if kept.ndim != 1:
        return f"an array of shape {kept.shape}"
    if not kept.size:
        return None
    if kept.dtype == np.bool_:
        return "an array of True and False, which numpy.flatnonzero turns into distances,"
    if not np.issubdtype(kept.dtype, np.integer):
        return f"values of type {kept.dtype}"
    if kept.min() < 0 or kept.max() >= length:
        return f"distance {kept.min() if kept.min() < 0 else kept.max()}"
    falls = np.flatnonzero(kept[1:] <= kept[:-1])
    return f"distance {kept[falls[0] + 1]} after {kept[falls[0]]}" if falls.size else None


@contextmanager
def _blamed(schedule: SuffixSchedule, method: str) -> Iterator[None]:
    try:
        yield
    except (DpadError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the caller's code, even one that calls sys.exit, must not end other sequences
        raise InvalidRequest(
            f"schedule {shown(schedule)} failed in its method {method}: {kind(error)}: {told(error)}"
        ) from error
