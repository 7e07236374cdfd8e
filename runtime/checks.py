"""Checks of what comes from outside: numbers in a request, and the inputs of a step.

    is_integer(True)                    # False
    as_integer(np.uint8(5))             # 5, of which -5 is no 251
    check_step(inputs, contract)        # raises EngineError naming the value and its limit
    check_outputs(outputs, inputs, contract, engine.name)

Every engine calls `check_step` before it launches anything: compiled engines follow a wrong
index into foreign memory instead of refusing it. The decode loop calls `check_outputs` after every step: an engine
is a file from outside, and what it answers wrongly is not the caller's fault.
"""

import math
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.arguments import plain
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, InvalidRequest

_INT64 = np.dtype(np.int64)
_BITS = 128  # of the largest seed that numpy's own advice draws; an integer of thousands could not even be printed
_LARGER = {
    "batch": "use smaller batches, or export with a larger --max-batch",
    "length": "use shorter canvases, or export with a larger --max-length",
}


def is_integer(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number of Python or numpy; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is an integer or a float of Python or numpy."""
    return is_integer(value) or isinstance(value, (float, np.floating))


def as_integer(value: Any, name: str = "a number") -> Any:
    """A whole number as Python's own, which does not wrap around where numpy's narrow ones do; all else as it is.

    Raises `InvalidRequest` for one that is larger than anything it could be good for.
    """
    value = plain(value)
    if not is_integer(value):
        return value
    number = int.__index__(value) if isinstance(value, int) else int(value)  # a class of integers may have its own
    if number.bit_length() > _BITS:
        raise InvalidRequest(f"{name} of {number.bit_length()} bits is too large; {_BITS} bits are the most")
    return number


def as_number(value: Any) -> Any:
    """A number as Python's float, infinite where it is larger than any float; all else as it is."""
    value = plain(value)
    if not is_number(value):
        return value
    try:
        if isinstance(value, int):
            return int.__float__(value)
        return float.__float__(value) if isinstance(value, float) else float(value)
    except OverflowError:
        return math.inf if int.__index__(value) > 0 else -math.inf


def check_step(inputs: StepInputs, contract: StepContract, *, extends: bool = False) -> None:
    """Raise `EngineError` unless `inputs` are what `contract` describes; some 10 microseconds.

    Checked are dtypes, axes and their limits, and that every token, position, slot and row
    exists. Unless the engine `extends`, a step that writes the cache may attend none of it: where the
    cache is nothing but the last such step's outputs, what it read would be gone.
    """
    canvas, gather = inputs.canvas, inputs.gather_indices
    cached, rows = inputs.cache_indices, inputs.decode_rows
    for name, array in (
        ("canvas", canvas),
        ("gather_indices", gather),
        ("cache_indices", cached),
        ("decode_rows", rows),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != _INT64 or array.ndim != 2:
            raise EngineError(f"{name} must be an int64 array of 2 axes, not {_kind(array)}")
        _check_shape(name, array.shape, len(canvas), contract)
    length, queries = canvas.shape[1], gather.shape[1]
    _check_values("canvas", canvas, 0, contract.vocab_size)
    _check_values("gather_indices", gather, -1, length)
    _check_values("decode_rows", rows, 0, queries)
    if cached.size:
        _check_values("cache_indices", cached, -1, length)
        if inputs.write_back and not extends and (highest := cached.max()) >= 0:
            raise EngineError(
                f"a step that writes the cache attends slot {highest} of it; refresh with no cached slots"
            )


def check_outputs(outputs: StepOutputs, inputs: StepInputs, contract: StepContract, engine: str) -> None:
    """Raise `EngineError`, naming the `engine`, unless `outputs` answer `inputs` as `contract` says.

    It takes some 10 microseconds. NaN is found where the confidence is computed, which reads the odds and the logits.
    """
    shape = inputs.decode_rows.shape
    wanted = [("token_ids", shape), ("confidence", shape), ("odds_against", shape)]
    wanted += [("logits", (*shape, contract.vocab_size))] if inputs.want_logits else []
    for name, sizes in wanted:
        array: Any = getattr(outputs, name, None)
        if not isinstance(array, np.ndarray):
            raise _broken(engine, f"gave {_kind(array)} for {name}")
        is_kind = array.dtype == _INT64 if name == "token_ids" else array.dtype.kind == "f"
        if array.shape != sizes or not is_kind:
            raise _broken(engine, f"gave {_kind(array)} of shape {array.shape} for {name}, and {sizes} was asked for")
    tokens, odds = outputs.token_ids, outputs.odds_against
    if tokens.size and tokens.view(np.uint64).max() >= contract.vocab_size:  # read so, what is below 0 is huge
        wrong = tokens[(tokens < 0) | (tokens >= contract.vocab_size)][0]
        raise _broken(engine, f"predicted token {wrong}, outside the vocabulary of {contract.vocab_size}")
    if odds.size and odds.min() < 0:
        raise _broken(engine, f"gave odds of {odds.min():.4g} against a token, which cannot be below 0")


def _broken(engine: str, fault: str) -> EngineError:
    return EngineError(f"engine {engine} {fault}: it is not the step of this bundle; export the bundle again")


def check_cache(inputs: StepInputs, batch: int, slots: int) -> None:
    """Raise `EngineError` unless a cache of `batch` rows and `slots` positions serves `inputs`.

    Call it after `check_step`, which keeps every index below the canvas length.
    """
    rows, length = inputs.canvas.shape
    if rows != batch:
        raise EngineError(f"a step of {rows} rows cannot use a cache of {batch}")
    if length <= slots:
        return
    used = [inputs.cache_indices, *([inputs.gather_indices] if inputs.write_back else [])]
    highest = max(array.max(initial=-1) for array in used)
    if highest >= slots:
        raise EngineError(f"cache slot {highest} is used, but this cache has {slots} slots")


def _check_shape(name: str, shape: tuple[int, ...], batch: int, contract: StepContract) -> None:
    rows, size = shape
    if rows != batch:
        raise EngineError(f"{name} has {rows} rows but the canvas has {batch}")
    if not 1 <= rows <= contract.max_batch:
        raise EngineError(
            f"a step of {rows} rows is outside this engine's 1 to {contract.max_batch}; {_LARGER['batch']}"
        )
    least = 0 if name == "cache_indices" else 1
    if not least <= size <= contract.max_length:
        limits = f"{least} to {contract.max_length}"
        raise EngineError(f"{name} has {size} columns, outside this engine's {limits}; {_LARGER['length']}")


def _check_values(name: str, array: NDArray[np.int64], least: int, end: int) -> None:
    # Read as unsigned, what lies below the range is huge: one pass sees both ends.
    if (array - least if least else array).view(np.uint64).max() >= end - least:
        wrong = array[(array < least) | (array >= end)][0]
        raise EngineError(f"{name} holds {wrong}, outside {least} to {end - 1}")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of {value.ndim}"
    return f"a {type(value).__name__}"
