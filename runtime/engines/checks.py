"""Checks the inputs and outputs of every step, for every engine.

    check_step(inputs, contract, slots)                         # EngineError names the value and its limit
    check_outputs(outputs, inputs, contract, engine.name)

A compiled engine does not refuse a wrong index but accesses memory out of bounds, so nothing is launched before
`check_step`. An engine is an untrusted file: if its outputs are wrong, the error blames the bundle and not the caller.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)
LARGER_BATCH = "use smaller batches, or export with a larger --max-batch"
LARGER_LENGTH = "use shorter canvases, or export with a larger --max-length"


def check_step(inputs: StepInputs, contract: StepContract, slots: int) -> None:
    """Raise `EngineError` unless `inputs` fit `contract` and a pool of `slots`; takes 9 to 21 microseconds.

    It checks dtypes, axes and their limits; that every token, position, slot and row exists; that slot 0 is not
    written; and that no slot is written twice.
    """
    canvas, gather = inputs.canvas, inputs.gather_indices
    cached, rows, written = inputs.cache_indices, inputs.decode_rows, inputs.write_slots
    named = [("canvas", canvas), ("gather_indices", gather), ("cache_indices", cached), ("decode_rows", rows)]
    if written is not None:
        named.append(("write_slots", written))
    for name, array in named:
        if not isinstance(array, np.ndarray) or array.dtype != _INT64 or array.ndim != 2:
            raise EngineError(f"{name} must be an int64 array of 2 axes, not {_kind(array)}")
        _check_shape(name, array.shape, len(canvas), contract)
    _check_values("canvas", canvas, 0, contract.vocab_size)
    _check_values("gather_indices", gather, -1, canvas.shape[1])
    _check_values("decode_rows", rows, 0, gather.shape[1])
    if cached.size:
        _check_values("cache_indices", cached, -1, slots)
    if written is not None:
        _check_written(written, gather, slots)
    if inputs.sampling is not None:
        _check_sampling(inputs, contract)


def _check_written(written: NDArray[np.int64], gather: NDArray[np.int64], slots: int) -> None:
    if written.shape != gather.shape:
        raise EngineError(f"write_slots have shape {written.shape}, gather_indices {gather.shape}")
    _check_values("write_slots", written, -1, slots)
    kept, found = written[written >= 0], np.zeros(slots, dtype=bool)
    found[kept] = True
    if found[0]:
        raise EngineError("write_slots holds 0, the slot that padding reads")
    if np.count_nonzero(found) < kept.size:
        raise EngineError(f"write_slots holds {np.argmax(np.bincount(kept) > 1)} twice")


def _check_sampling(inputs: StepInputs, contract: StepContract) -> None:
    sampling, shape = inputs.sampling, inputs.decode_rows.shape
    assert sampling is not None
    for name, array in vars(sampling).items():
        dtype = _INT64 if name in ("top_k", "banned") else _FLOAT32
        axes = shape if name == "uniform" else shape[:1]
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != axes:
            raise EngineError(f"{name} must be a {dtype} array of shape {axes}, not {_kind(array)}")
    draws = sampling.uniform
    if not (draws.min() >= 0 and draws.max() < 1):  # also refuses NaN
        raise EngineError(f"uniform holds {draws[~((draws >= 0) & (draws < 1))][0]}, which is out of range")
    bounds: list[tuple[str, Callable[[float], bool]]] = [
        ("temperature", lambda value: 0 <= value < math.inf),
        ("top_k", lambda value: value >= 0),
        ("top_p", lambda value: 0 < value <= 1),
        ("banned", lambda value: -1 <= value < contract.vocab_size),
    ]
    for name, holds in bounds:
        for value in getattr(sampling, name).tolist():  # Python compares a few values faster than numpy does
            if not holds(value):
                raise EngineError(f"{name} holds {value}, which is out of range")


def check_outputs(outputs: StepOutputs, inputs: StepInputs, contract: StepContract, engine: str) -> None:
    """Raise an `EngineError` that names the `engine`, unless `outputs` fit `inputs` and `contract`.

    It takes 3 to 11 microseconds. It does not look for NaN: each sequence does, in its own rows.
    """
    shape = inputs.decode_rows.shape
    found: list[tuple[Any, tuple[str, ...]]] = [(outputs, ("token_ids", "odds_against"))]
    if inputs.sampling is not None:
        found.append((outputs.decisions, ("token_ids", "odds_against", "negative_entropy", "margin")))
    for source, names in found:
        for name in names:
            _check_output(name, getattr(source, name, None), shape, engine)
        tokens = source.token_ids
        if tokens.size and tokens.view(np.uint64).max() >= contract.vocab_size:  # unsigned: negative ids become huge
            wrong = tokens[(tokens < 0) | (tokens >= contract.vocab_size)][0]
            raise _broken(engine, f"predicted token {wrong}, outside the vocabulary of {contract.vocab_size}")
        if (least := source.odds_against.min(initial=0)) < 0:
            raise _broken(engine, f"gave odds of {least}")
    if inputs.want_logits:
        _check_output("logits", outputs.logits, (*shape, contract.vocab_size), engine)


def _check_output(name: str, array: Any, shape: tuple[int, ...], engine: str) -> None:
    if not isinstance(array, np.ndarray):
        raise _broken(engine, f"gave {_kind(array)} for {name}")
    is_kind = array.dtype == _INT64 if name == "token_ids" else array.dtype.kind == "f"
    if array.shape != shape or not is_kind:
        raise _broken(engine, f"gave {_kind(array)} of shape {array.shape} for {name} instead of {shape}")


def _broken(engine: str, fault: str) -> EngineError:
    return EngineError(f"engine {engine} {fault}: it is not the step of this bundle; export the bundle again")


def _check_shape(name: str, shape: tuple[int, ...], batch: int, contract: StepContract) -> None:
    rows, size = shape
    if rows != batch:
        raise EngineError(f"{name} has {rows} rows but the canvas has {batch}")
    if not 1 <= rows <= contract.max_batch:
        raise EngineError(f"a step of {rows} rows is outside this engine's 1 to {contract.max_batch}; {LARGER_BATCH}")
    least = 0 if name == "cache_indices" else 1
    if not least <= size <= contract.max_length:
        limits = f"{least} to {contract.max_length}"
        raise EngineError(f"{name} has {size} columns, outside this engine's {limits}; {LARGER_LENGTH}")


def _check_values(name: str, array: NDArray[np.int64], least: int, end: int) -> None:
    # As unsigned integers, values below the range become huge, so one comparison checks both ends.
    if (array - least if least else array).view(np.uint64).max() >= end - least:
        wrong = array[(array < least) | (array >= end)][0]
        raise EngineError(f"{name} holds {wrong}, outside {least} to {end - 1}")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of {value.ndim}"
    return f"a {type(value).__name__}"
