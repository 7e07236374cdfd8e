"""`check_step` accepts every well-formed step, and raises `EngineError` for every other one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.checks import check_step
from dpad.runtime.engines.step import Sampling, StepInputs
from dpad.runtime.errors import EngineError

VOCAB, BATCH, LENGTH, SLOTS = 50, 3, 24, 100
CONTRACT = StepContract("llada", 2, 2, 1, 32, VOCAB, 49, 1, 0, BATCH, LENGTH, 8, 8, False)
ARRAYS = ("canvas", "gather_indices", "cache_indices", "decode_rows")


@st.composite
def well_formed(draw: st.DrawFn) -> StepInputs:
    """A random step that the contract allows; half of the arrays are not contiguous."""
    batch, length, queries = draw(st.integers(1, BATCH)), draw(st.integers(1, LENGTH)), draw(st.integers(1, LENGTH))
    cached, decoded = draw(st.integers(0, LENGTH)), draw(st.integers(1, LENGTH))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def array(least: int, end: int, columns: int) -> NDArray[np.int64]:
        made = rng.integers(least, end, (batch, columns))
        return np.asfortranarray(made) if draw(st.booleans()) else made

    written = np.where(rng.random((batch, queries)) < 0.5, -1, 0)
    written[written == 0] = rng.permutation(np.arange(1, SLOTS))[: (written == 0).sum()]
    floats = np.float32
    sampling = Sampling(
        rng.random((batch, decoded), floats),
        rng.choice([0, 0.3, 1, 9], batch).astype(floats),
        rng.choice([0, 1, 7, 10 * VOCAB], batch),
        rng.choice([1e-6, 0.9, 1], batch).astype(floats),
        rng.integers(-1, VOCAB, batch),
    )
    return StepInputs(
        array(0, VOCAB, length),
        array(-1, length, queries),
        array(-1, SLOTS, cached),
        array(0, queries, decoded),
        draw(st.sampled_from([None, written])),
        draw(st.sampled_from([None, sampling])),
        draw(st.booleans()),
    )


@given(well_formed())
def test_what_the_contract_allows_passes(inputs: StepInputs) -> None:
    """Fails if a limit is off by one, or a memory layout, an empty cache or padding is refused."""
    check_step(inputs, CONTRACT, SLOTS)


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
    """Replace an array by zeros of another shape; None keeps a size."""

    def edit(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
        have = getattr(inputs, name).shape
        shape = tuple(old if new is None else new for old, new in zip(have, (rows, columns)))
        return replace(inputs, **{name: np.zeros(shape, dtype=np.int64)})

    return edit


def recast(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
    """Change one array's type or number of axes, or replace it by something else."""
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


def write(edit: Callable[[NDArray[np.int64]], Any]) -> Edit:
    """Make a step of 2 or more rows keep all of them, and change its slots by `edit`, or replace them by its result."""

    def apply(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
        gather = np.zeros((len(inputs.canvas), draw(st.integers(2, LENGTH))), dtype=np.int64)
        slots = draw(st.permutations(range(1, SLOTS)))[: gather.size]
        written = np.array(slots).reshape(gather.shape)
        given = edit(written)
        rows = np.zeros((len(gather), 1), dtype=np.int64)
        written = written if given is None else given
        return replace(inputs, gather_indices=gather, decode_rows=rows, write_slots=written, sampling=None)

    return apply


def twice(written: NDArray[np.int64]) -> None:
    """Write two rows to one slot."""
    written.flat[-1] = written.flat[0]


def slot(value: int) -> Edit:
    """Set one of the slots to `value`."""
    return write(lambda written: written.__setitem__((0, 1), value))


def draws(**values: Any) -> Edit:
    """Add sampling inputs, and set one element of an array, or replace the array by a function's result."""

    def edit(draw: st.DrawFn, inputs: StepInputs) -> StepInputs:
        shape = inputs.decode_rows.shape
        floats, integers = np.ones(shape[0], np.float32), np.ones(shape[0], np.int64)
        sampling = Sampling(np.zeros(shape, np.float32), floats, integers, floats, integers)
        for name, value in values.items():
            array = getattr(sampling, name).copy()
            if callable(value):
                array = value(array)
            else:
                array.flat[-1] = value
            sampling = replace(sampling, **{name: array})
        return replace(inputs, sampling=sampling)

    return edit


HUGE, TINY = 2**63 - 1, -(2**63)
MALFORMED: dict[str, tuple[Edit, str]] = {
    "type": (recast, "must be an int64 array of 2 axes"),
    "written twice": (write(twice), "write_slots holds [0-9]+ twice"),
    "slot 0 written": (slot(0), "write_slots holds 0, the slot that padding reads"),
    "slot beyond the pool written": (slot(SLOTS), f"write_slots holds {SLOTS}, outside -1 to {SLOTS - 1}"),
    "slot below -1 written": (slot(-2), "write_slots holds -2, outside"),
    "fewer slots than rows": (write(lambda written: written[:, 1:]), "write_slots have shape"),
    "slots in 32 bit": (write(lambda written: written.astype(np.int32)), "write_slots must be an int64 array"),
    "slots in a list": (write(lambda written: written.tolist()), "write_slots must be an int64 array"),
    "uniform of 1": (draws(uniform=1), "uniform holds 1.0, which is out of range"),
    "uniform below 0": (draws(uniform=-0.1), "uniform holds -0.1"),
    "uniform NaN": (draws(uniform=np.nan), "uniform holds nan"),
    "temperature below 0": (draws(temperature=-1), "temperature holds -1.0"),
    "infinite temperature": (draws(temperature=np.inf), "temperature holds inf"),
    "top_k below 0": (draws(top_k=-1), "top_k holds -1"),
    "top_p of 0": (draws(top_p=0), "top_p holds 0.0"),
    "top_p over 1": (draws(top_p=1.5), "top_p holds 1.5"),
    "top_p NaN": (draws(top_p=np.nan), "top_p holds nan"),
    "banned beyond the vocabulary": (draws(banned=VOCAB), f"banned holds {VOCAB}"),
    "banned below -1": (draws(banned=-2), "banned holds -2"),
    "another draw a row": (draws(uniform=lambda array: array[:, :0]), "uniform must be a float32 array of shape"),
    "temperature in 64 bit": (draws(temperature=lambda array: array.astype(float)), "temperature must be a float32"),
    "one temperature": (draws(temperature=lambda array: 1.0), "temperature must be a float32 array"),
    "batch over the limit": (
        lambda draw, inputs: replace(inputs, **{n: np.zeros((BATCH + 1, 1), np.int64) for n in ARRAYS}),
        "4 rows .* 1 to 3",
    ),
    "no rows": (
        lambda draw, inputs: replace(inputs, **{n: np.zeros((0, 1), np.int64) for n in ARRAYS}),
        "0 rows .* 1 to 3",
    ),
}
for _name, _end in (("canvas", VOCAB), ("gather_indices", LENGTH), ("cache_indices", SLOTS), ("decode_rows", LENGTH)):
    _least = 0 if _name in ("canvas", "decode_rows") else -1
    for _value in (_least - 1, _end, HUGE, TINY):
        MALFORMED[f"{_name} {_value}"] = (put(_name, _value), f"{_name} holds {_value}, outside {_least} to")
    MALFORMED[f"{_name} too long"] = (resize(_name, None, LENGTH + 1), f"{_name} has 25 columns")
    if _name != "cache_indices":
        MALFORMED[f"{_name} empty"] = (resize(_name, None, 0), f"{_name} has 0 columns")
    MALFORMED[f"{_name} of other rows"] = (resize(_name, BATCH + 2, None), "5 .*[0-9]")


@pytest.mark.parametrize("case", MALFORMED)
@settings(max_examples=20)
@given(data=st.data(), inputs=well_formed())
def test_what_it_does_not_allow_is_an_engine_error(case: str, data: st.DataObject, inputs: StepInputs) -> None:
    """Fails if a malformed step is accepted, raises another error, or the message lacks the value or the limit."""
    edit, words = MALFORMED[case]
    with pytest.raises(EngineError, match=words):
        check_step(edit(data.draw, inputs), CONTRACT, SLOTS)
