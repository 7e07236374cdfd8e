"""Compares recorded steps with the same steps launched eagerly, in every bucket, and both with float32 on the CPU.

Each shape runs until a recording is replayed. Tokens and logits of a recording must be bit-identical to those of an
eager launch; steps of one sequence are also compared with the reference.
"""

import itertools
from typing import Any

import numpy as np

from dpad.models.torch_engine import TorchEngine
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs, StepOutputs
from gpu.engines import entries, reference, tiny_bundle
from gpu.session import Failures, Session
from gpu.timing import DEVICE

BATCHES = (1, 2, 4)
LIMIT = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}  # relative RMS error of the logits, by the rows' dtype


def recordings(session: Session) -> dict[str, Any]:
    """For every GPU engine that records steps: the shapes compared, those that differ, and the error of the logits."""
    failures, engines = Failures(), dict[str, Any]()
    found = [entry for entry in entries(session) if entry.obstacle is None and entry.weights == "full"]
    for place, entry in enumerate(found):
        share = session.left() / (len(found) - place)
        with entry.open() as engine:
            if hasattr(engine, "eagerly"):
                engines[entry.name] = _compare(session, engine, share)
                _judge(failures, entry.name, engines[entry.name])
    return {"engines": engines, "failures": failures.told}


def sizes(engine: Engine, axis: str, longest: int) -> list[int]:
    """The bucket sizes of an axis up to `longest`."""
    return sorted({min(engine.padded(axis, size), longest) for size in range(1, longest + 1)})


def _compare(session: Session, engine: Any, seconds: float) -> dict[str, Any]:
    checker, end = _Checker(engine, session.once(_reference)), session.left() - seconds
    longest = engine.contract.max_length
    queries, cached = sizes(engine, "Q", longest), [0, *sizes(engine, "K", longest)]
    shapes = [
        (batch, q, k) for batch, q, k in itertools.product(BATCHES, queries, cached)
        if batch <= engine.contract.max_batch and batch * q <= engine.most_rows
    ]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(shapes)).tolist()
    compared = 0
    for place in order:
        if session.left() < end + 3:
            break
        checker.check(*shapes[place])
        compared += 1
    return {
        "shapes": len(shapes),
        "compared": compared,
        "kept": engine.recordings,
        "different": checker.different,
        "worst_relative_rms": checker.worst,
        "limit": LIMIT[engine.dtype],
        "graph_failure": engine.graph_failure,
    }


def _reference(session: Session) -> TorchEngine:
    return reference(session.once(tiny_bundle), "full")


class _Checker:
    """Compares single steps; both engines have the keys and values of one long sequence in the same slots."""

    def __init__(self, engine: Any, expected: TorchEngine) -> None:
        self._engine, self._expected = engine, expected
        self._random = np.random.default_rng(1)
        self.worst, self.different = 0.0, list[str]()
        length = engine.contract.max_length
        canvas = self._random.integers(0, engine.contract.vocab_size, size=(1, length))
        rows, slots = np.arange(length)[None], np.arange(1, length + 1)[None]
        filling = StepInputs(canvas, rows, np.zeros((1, 0), dtype=np.int64), rows[:, :1], slots)
        for each in (engine, expected):
            each.step(filling)

    def check(self, batch: int, queries: int, cached: int) -> None:
        """Check one shape: launch it eagerly, then run it until a recording is replayed."""
        inputs, engine = self._inputs(batch, queries, cached), self._engine
        with engine.eagerly():
            eager = engine.step(inputs)
        for _ in range(3):
            replayed = engine.step(inputs)
        if not _same(eager, replayed):
            self.different.append(f"B={batch} Q={queries} K={cached}")
        if batch == 1:
            self.worst = max(self.worst, _error(replayed, self._expected.step(inputs)))

    def _inputs(self, batch: int, queries: int, cached: int) -> StepInputs:
        contract, random = self._engine.contract, self._random
        length, decoded = contract.max_length, self._engine.padded("R", 1)

        def chosen(count: int) -> np.ndarray[Any, Any]:
            rows = [np.sort(random.permutation(length)[:count]) for _ in range(batch)]
            return np.array(rows, dtype=np.int64).reshape(batch, count)

        return StepInputs(
            random.integers(0, contract.vocab_size, size=(batch, length)),
            chosen(queries),
            chosen(cached) + (1 if cached else 0),
            random.integers(0, queries, size=(batch, decoded)),
            want_logits=True,
        )


def _same(one: StepOutputs, other: StepOutputs) -> bool:
    pairs = ((one.token_ids, other.token_ids), (one.odds_against, other.odds_against), (one.logits, other.logits))
    return all(np.array_equal(a, b) for a, b in pairs if a is not None and b is not None)


def _error(found: StepOutputs, expected: StepOutputs) -> float:
    assert found.logits is not None and expected.logits is not None
    difference = np.square(found.logits - expected.logits).mean() / np.square(expected.logits).mean()
    return float(np.sqrt(difference))


def _judge(failures: Failures, name: str, found: dict[str, Any]) -> None:
    different = found["different"]
    failures.unless(not different, f"{name}: recordings differ from eager launches at {', '.join(different[:5])}")
    error = found["worst_relative_rms"]
    failures.unless(error <= found["limit"], f"{name}: logits are off by {error:.1e}, over {found['limit']:.0e}")
    failures.unless(found["graph_failure"] is None, f"{name}: recording failed: {found['graph_failure']}")
    failures.unless(found["compared"] > 0, f"{name}: nothing was compared")
    failures.unless(found["kept"] > 0 or DEVICE == "cpu", f"{name}: nothing was recorded")
