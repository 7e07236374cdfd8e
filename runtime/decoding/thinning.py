"""Asks a suffix schedule, which may be the caller's own, and checks what it answers.

    check_schedule(schedule, gen_length, block_length)
    survivors(schedule, block, length, gen_length, rng)     # distances, int64, ascending, in [0, length)

What a schedule of the caller's raises or answers wrong is an `InvalidRequest` that names the schedule.
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
    """Raise `InvalidRequest` for what has not the methods of a `SuffixSchedule`, a class among them."""
    if isinstance(value, type) or not all(callable(getattr(value, name, None)) for name in ("check", "keep")):
        way_out = "dpad.Full() drops nothing"
        if listed(value) is not None:
            way_out = (
                "suffix positions go in as dpad.Explicit.from_positions(positions, prompt_length, block_length), "
                "where the prompt's length is len(model.request(prompt).prompt_ids)"
            )
        raise InvalidRequest(f"schedule {shown(value)} is no suffix schedule, such as dpad.Gaussian(k=4) is; {way_out}")


def check_schedule(schedule: SuffixSchedule, gen_length: int, block_length: int) -> None:
    """Raise `InvalidRequest` for what is no schedule, or cannot serve canvases of `gen_length` in such blocks."""
    check_is_schedule(schedule)
    with _blamed(schedule, "check"):
        schedule.check(gen_length, block_length)


def drops_all(schedule: SuffixSchedule) -> bool:
    """Whether `schedule` keeps no suffix at all, as block-causal models need it."""
    return isinstance(schedule, Uniform) and schedule == NOTHING


def survivors(
    schedule: SuffixSchedule, block: int, length: int, gen_length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """What `schedule` keeps of the `length` masks behind `block`, as distances; [kept], ascending."""
    with _blamed(schedule, "keep"):
        kept = np.asarray(schedule.keep(block, length, gen_length, rng))
    fault = _fault(kept, length)
    if fault:
        raise InvalidRequest(
            f"schedule {shown(schedule)} keeps, behind block {block}, {fault}; "
            f"keep must return integers that ascend, each from 0 to below {length}"
        )
    return kept.astype(np.int64, copy=False)


def _fault(kept: NDArray[Any], length: int) -> str | None:
    """What is wrong with the distances `kept`; None if nothing is."""
    if kept.ndim != 1:
        return f"an array of shape {kept.shape}"
    if not kept.size:
        return None
    if kept.dtype == np.bool_:
        return "an array of True and False, of which numpy.flatnonzero makes distances"
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
    except BaseException as error:  # of code that is not this package's: who exits there ends no neighbour
        raise InvalidRequest(
            f"schedule {shown(schedule)} failed in its method {method}: {kind(error)}: {told(error)}"
        ) from error
