"""`check_step`: any malformed step is an `EngineError`, any well-formed one passes."""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpad.runtime.checks import check_cache, check_step
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import StepInputs
from dpad.runtime.errors import EngineError

VOCAB, BATCH, LENGTH = 50, 3, 24
CONTRACT = StepContract("llada", 2, 2, 1, 32, VOCAB, 49, 1, 0, BATCH, LENGTH, 8, 8)
ARRAYS = ("canvas", "gather_indices", "cache_indices", "decode_rows")


@st.composite
def well_formed(draw: st.DrawFn) -> StepInputs:
    """Any step that the contract allows; half of the arrays do not lie contiguously."""
    batch, length, queries = draw(st.integers(1, BATCH)), draw(st.integers(1, LENGTH)), draw(st.integers(1, LENGTH))
    cached, decoded = draw(st.integers(0, LENGTH)), draw(st.integers(1, LENGTH))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def array(least: int, end: int, columns: int) -> NDArray[np.int64]:
        made = rng.integers(least, end, (batch, columns))
        return np.asfortranarray(made) if draw(st.booleans()) else made

    write_back = draw(st.booleans())
    return StepInputs(
        array(0, VOCAB, length),
        array(-1, length, queries),
        array(-1, 0 if write_back else length, cached),
        array(0, queries, decoded),
        write_back=write_back,
        want_logits=draw(st.booleans()),
    )


@given(well_formed())
def test_what_the_contract_allows_passes(inputs: StepInputs) -> None:
    """Fails if a limit is off by one, or a layout, an empty cache or padding is refused."""
    check_step(inputs, CONTRACT)


Edit = Callable[[st.DrawFn, StepInputs], StepInputs]


def put(name: str, value: int) -> Edit:
    """Write `value` into one element of an array."""

    def edit(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
        array = getattr(inputs, name).copy()
        if not array.size:
            array = np.full((len(array), 1), -1)
        array.flat[draw(st.integers(0, array.size - 1))] = value
        return replace(inputs, **{name: array})

    return edit


def resize(name: str, rows: int | None, columns: int | None) -> Edit:
    """Zeros of another shape; None keeps the size."""

    def edit(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
        have = getattr(inputs, name).shape
        shape = tuple(old if new is None else new for old, new in zip(have, (rows, columns)))
        return replace(inputs, **{name: np.zeros(shape, dtype=np.int64)})

    return edit


def recast(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
    """One array of another type or number of axes, or no array at all."""
    name = draw(st.sampled_from(ARRAYS))
    array: Any = getattr(inputs, name)
    kinds: list[Callable[[], Any]] = [
        *(lambda kind=kind: array.astype(kind) for kind in (np.int32, np.uint64, np.float32, np.bool_, ">i8", object)),
        lambda: array[None],
        lambda: array[0],
        lambda: np.int64(0),
        lambda: array.tolist(),
        lambda: None,
    ]
    return replace(inputs, **{name: draw(st.sampled_from(kinds))()})


def attend_while_writing(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
    """A refresh that attends a slot."""
    return put("cache_indices", 0)(draw, replace(inputs, write_back=True))


HUGE, TINY = 2**63 - 1, -(2**63)
MALFORMED: dict[str, tuple[Edit, str]] = {
    "type": (recast, "must be an int64 array of 2 axes"),
    "attended while writing": (attend_while_writing, "writes the cache attends slot"),
    "batch over the limit": (
        lambda draw, inputs: replace(inputs, **{n: np.zeros((BATCH + 1, 1), np.int64) for n in ARRAYS}),
        "4 rows .* 1 to 3",
    ),
    "no rows": (
        lambda draw, inputs: replace(inputs, **{n: np.zeros((0, 1), np.int64) for n in ARRAYS}),
        "0 rows .* 1 to 3",
    ),
}
for _name, _end in (("canvas", VOCAB), ("gather_indices", LENGTH), ("cache_indices", LENGTH), ("decode_rows", LENGTH)):
    _least = 0 if _name in ("canvas", "decode_rows") else -1
    for _value in (_least - 1, _end, HUGE, TINY):
        MALFORMED[f"{_name} {_value}"] = (put(_name, _value), f"{_name} holds {_value}, outside {_least} to")
    MALFORMED[f"{_name} too long"] = (resize(_name, None, LENGTH + 1), f"{_name} has 25 columns")
    if _name != "cache_indices":
        MALFORMED[f"{_name} empty"] = (resize(_name, None, 0), f"{_name} has 0 columns")
    MALFORMED[f"{_name} of other rows"] = (resize(_name, BATCH + 2, None), "5 .*[0-9]")


@pytest.mark.parametrize("case", MALFORMED)
@given(data=st.data(), inputs=well_formed())
def test_what_it_does_not_allow_is_an_engine_error(case: str, data: st.DataObject, inputs: StepInputs) -> None:
    """Fails if a malformed step reaches an engine, raises anything else, or the message hides value and limit."""
    edit, words = MALFORMED[case]
    with pytest.raises(EngineError, match=words):
        check_step(edit(data.draw, inputs), CONTRACT)


@given(well_formed(), st.integers(0, 4), st.integers(0, LENGTH + 1))
def test_a_cache_fits_or_is_refused(inputs: StepInputs, batch: int, slots: int) -> None:
    """Fails if a slot or row that the cache does not have would be used, or one that it has is refused."""
    used = [inputs.cache_indices, inputs.gather_indices] if inputs.write_back else [inputs.cache_indices]
    if batch == len(inputs.canvas) and all((array < slots).all() for array in used):
        check_cache(inputs, batch, slots)
    else:
        with pytest.raises(EngineError, match=r"slots|rows"):
            check_cache(inputs, batch, slots)


def test_the_check_is_cheap() -> None:
    """Fails if the check costs a share of a step that shows: 0.2 ms at most, some 10 microseconds measured."""
    rng = np.random.default_rng(0)
    contract = replace(CONTRACT, max_length=4096, max_batch=8)
    indices = np.tile(np.arange(512), (1, 1))
    inputs = StepInputs(rng.integers(0, VOCAB, (1, 1024)), indices, indices, rng.integers(0, 512, (1, 32)))
    times = []
    for _ in range(50):
        began = perf_counter()
        check_step(inputs, contract)
        times.append(perf_counter() - began)
    assert min(times) < 2e-4
