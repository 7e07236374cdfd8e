"""Single steps of engines: which rows the pool holds, in which slots, and for which sequence.

Every engine is compared with the eager one or with the definition.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, MASK, OPENERS
from numpy.typing import NDArray

from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

LENGTH = 40

each_engine = pytest.mark.parametrize("engine", ["torch", "onnxruntime", "onnxruntime-cuda", "tensorrt"])
each_family = pytest.mark.parametrize("family", FAMILIES)


def table(*rows: Any) -> NDArray[np.int64]:
    """Index rows, padded with -1 to the longest."""
    lists = [list(row) for row in rows]
    width = max(map(len, lists))
    return np.array([row + [-1] * (width - len(row)) for row in lists], dtype=np.int64).reshape(len(lists), width)


def canvas(rows: int, seed: int = 0) -> NDArray[np.int64]:
    """A canvas of random tokens for each of `rows` sequences."""
    return np.random.default_rng(seed).integers(2, MASK, (rows, LENGTH))


Places = list[dict[int, int]]  # for each sequence: position -> pool slot


@contextmanager
def places(engine: Engine, *kept: Any) -> Iterator[Places]:
    """Slots for the positions that each sequence keeps; the sequences' slots are mixed, as in a running server."""
    slots = engine.slots.take(sum(map(len, kept)))
    assert slots is not None
    left = iter(np.random.default_rng(5).permutation(slots).tolist())
    yield [{position: next(left) for position in row} for row in kept]
    engine.slots.give(slots)


def refresh(held: Places, *gather: Any, seed: int = 0) -> StepInputs:
    """A step that computes and keeps the positions `gather`, one iterable for each sequence."""
    rows = len(gather)
    written = table(*([places[position] for position in row] for places, row in zip(held, gather)))
    nothing = np.empty((rows, 0), dtype=np.int64)
    return StepInputs(canvas(rows, seed), table(*gather), nothing, np.zeros((rows, 1), np.int64), written)


def cached(held: Places, gather: list[Any], attended: list[Any], seed: int = 0) -> StepInputs:
    """A step that computes the positions `gather` and attends the positions `attended` in the pool."""
    first_rows = np.tile(np.arange(min(len(list(row)) for row in gather)), (len(gather), 1))
    slots = table(*([places[position] for position in row] for places, row in zip(held, attended)))
    return StepInputs(canvas(len(gather), seed), table(*gather), slots, first_rows, want_logits=True)


def assert_close(ours: StepOutputs, theirs: StepOutputs) -> None:
    """Assert equal tokens, and logits equal within float32's rounding."""
    np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
    assert ours.logits is not None and theirs.logits is not None
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=2e-4)


# Positions of a refresh, thinned by DPad and of unequal lengths; later steps attend some of them.
KEPT = ([*range(20), 23, 27, 38], [*range(12), 30])
STEPS: list[tuple[list[Any], list[Any]]] = [
    ([range(8, 16), range(4, 10)], [[*range(8), 23, 38], [*range(4), 30]]),
    ([range(8, 16), range(4, 10)], [[], [0]]),
    ([[*range(15, 20), 25], [*range(12)]], [[27, 3], []]),
]


@each_engine
@each_family
def test_cached_steps_read_the_rows_of_their_slots(engine_of: Any, engine: str, family: str) -> None:
    """Fails if a slot holds the row of another position or sequence, or padding is attended."""
    opened, reference = engine_of(engine, family), engine_of("torch", family)
    with places(opened, *KEPT) as ours, places(reference, *KEPT) as theirs:
        for seed in (0, 1):  # the second refresh must replace the first
            opened.step(refresh(ours, *KEPT, seed=seed))
            reference.step(refresh(theirs, *KEPT, seed=seed))
            for step in STEPS:
                assert_close(opened.step(cached(ours, *step)), reference.step(cached(theirs, *step)))


@each_family
def test_the_eager_step_reads_the_rows_it_kept(engine_of: Any, family: str) -> None:
    """Fails if attending a canvas's rows in the pool differs from computing them in the same step."""
    engine: Engine = engine_of("torch", family)
    whole = list(range(20))
    with places(engine, whole) as held:
        engine.step(refresh(held, whole))
        rows = np.arange(8, 20)[None]
        together = engine.step(replace(cached(held, [whole], [[]]), decode_rows=rows))
        apart = engine.step(cached(held, [whole[8:]], [whole[:8]]))
        assert_close(apart, together)


@each_engine
def test_sequences_of_one_engine_do_not_meet(engine_of: Any, engine: str) -> None:
    """Fails if a refresh of one request changes the cache of another."""
    opened: Engine = engine_of(engine, "llada")
    alone = []
    for seed in (0, 1):
        with places(opened, *KEPT) as held:
            opened.step(refresh(held, *KEPT, seed=seed))
            alone.append([opened.step(cached(held, *step)) for step in STEPS])
    with places(opened, *KEPT) as first, places(opened, *KEPT) as second:
        for seed, held in enumerate((first, second)):
            opened.step(refresh(held, *KEPT, seed=seed))
        for index, step in enumerate(STEPS):
            for seed, held in enumerate((first, second)):
                assert_close(opened.step(cached(held, *step)), alone[seed][index])
    assert not np.allclose(alone[0][0].logits, alone[1][0].logits, atol=1e-2), "the sequences are alike"


@each_engine
def test_padding_is_nobody_and_writes_nothing(engine_of: Any, engine: str) -> None:
    """Fails if padding in `cache_indices` or `write_slots` acts as a slot, or a step writes other slots."""
    opened: Engine = engine_of(engine, "llada")
    with places(opened, *KEPT) as held:
        opened.step(refresh(held, *KEPT))
        before = [opened.step(cached(held, *step)) for step in STEPS]
        plain = cached(held, [range(8), range(8)], [[], []], seed=3)
        expected = opened.step(plain)
        kept_nothing = np.full((2, 8), -1)
        padded = replace(plain, cache_indices=np.full((2, 16), -1), write_slots=kept_nothing)
        assert_close(opened.step(padded), expected)
        for step, was in zip(STEPS, before):
            assert_close(opened.step(cached(held, *step)), was)


@each_engine
@each_family
def test_a_step_may_keep_some_rows_beside_those_it_attends(engine_of: Any, engine: str, family: str) -> None:
    """Fails if later steps do not read the rows that a step was to keep, or other rows were written."""
    opened: Engine = engine_of(engine, family)
    added = [[p for p in row if p >= 8][:6] for row in KEPT]
    attended = [[p for p in row if p < 8] for row in KEPT]
    with places(opened, *KEPT) as held:
        opened.step(refresh(held, *KEPT))
        extension = cached(held, added, attended, seed=1)
        written = table(*([places[p] if i % 2 else -1 for i, p in enumerate(row)] for places, row in zip(held, added)))
        later = cached(held, [[30, 31]] * 2, [a + b for a, b in zip(attended, added)])
        old = opened.step(later)
        plain = opened.step(extension)
        assert_close(opened.step(replace(extension, write_slots=written)), plain)
        new = opened.step(later)
        assert not np.allclose(new.logits, old.logits, atol=1e-3), "its rows were not kept"
        # The other rows are still those of the refresh, so repeating the refresh changes nothing.
        again = refresh(held, *KEPT)
        named = table(*(row[1::2] for row in added))
        kept = np.where((again.gather_indices[:, :, None] == named[:, None, :]).any(2), -1, again.write_slots)
        opened.step(replace(again, write_slots=kept))
        assert_close(opened.step(later), new)


@each_engine
def test_malformed_inputs_are_refused_before_the_launch(engine_of: Any, engine: str) -> None:
    """Fails if an engine skips `check_step`, or a refused step changes the pool."""
    opened: Engine = engine_of(engine, "llada")
    with places(opened, *KEPT) as held:
        opened.step(refresh(held, *KEPT))
        before = opened.step(cached(held, *STEPS[0]))
        wrong = refresh(held, *KEPT, seed=1)
        wrong.gather_indices[1, 3] = LENGTH
        with pytest.raises(EngineError, match="gather_indices holds 40, outside -1 to 39"):
            opened.step(wrong)
        outside = replace(cached(held, *STEPS[0]), cache_indices=np.full((2, 1), opened.slots.size))
        with pytest.raises(EngineError, match=f"cache_indices holds {opened.slots.size}, outside -1 to"):
            opened.step(outside)
        assert_close(opened.step(cached(held, *STEPS[0])), before)


def test_a_step_that_fails_leaves_the_engine_usable(make_bundle: Any, monkeypatch: Any) -> None:
    """Fails if an error of ONNX Runtime is not typed, or bindings of the failed step affect the next one."""
    engine = OPENERS["onnxruntime"](make_bundle("llada"))
    with places(engine, *KEPT) as held:
        engine.step(refresh(held, *KEPT))
        before = engine.step(cached(held, *STEPS[0]))

        class Failing:
            def run_with_iobinding(self, binding: Any) -> None:
                raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(engine, "session", Failing())
            with pytest.raises(EngineError, match="out of memory"):
                engine.step(refresh(held, *KEPT, seed=1))
        assert_close(engine.step(cached(held, *STEPS[0])), before)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="is closed"):
            engine.step(cached(held, *STEPS[0]))
