"""Caches of `TrtEngine` that grow, over simulated hardware whose memory is NaN until something is written to it.

What a cache holds is compared with the eager engine's, which has a row for every position.
"""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import MASK
from decoding import run
from host_trt import opened
from numpy.typing import NDArray

from dpad.runtime.cache import BLOCKS
from dpad.runtime.decoding.generate import generate
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import NOTHING, Full
from dpad.runtime.engines.base import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

LENGTH, LONGEST = 40, 512  # of the canvases here; of the engine
MODES = {"extend": "llada", BLOCKS: "fast_dllm"}

each_mode = pytest.mark.parametrize("cache_mode", MODES)


def table(*rows: Any) -> NDArray[np.int64]:
    """Index rows, padded with -1 to the longest."""
    lists = [list(row) for row in rows]
    width = max(1, *map(len, lists))
    return np.array([row + [-1] * (width - len(row)) for row in lists], dtype=np.int64)


def step(gather: list[Any], attended: list[Any], write_back: bool = True, length: int = LENGTH) -> StepInputs:
    """A step of the positions `gather`, one iterable a sequence, that attends the slots `attended`."""
    canvas = np.random.default_rng(5).integers(2, MASK, (len(gather), length))
    rows = np.zeros((len(gather), 1), dtype=np.int64)
    return StepInputs(canvas, table(*gather), table(*attended), rows, write_back, want_logits=True)


def assert_close(ours: StepOutputs, theirs: StepOutputs) -> None:
    """Within float32's rounding, and no NaN."""
    assert ours.logits is not None
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=2e-4, equal_nan=False)


def some(rng: np.random.Generator, positions: set[int], most: int) -> list[int]:
    """At most `most` of the positions, in any order."""
    return [int(p) for p in rng.permutation(sorted(positions))[: rng.integers(0, most + 1)]]


@pytest.mark.parametrize("family", MODES.values())
@pytest.mark.parametrize("seed", range(2))
def test_what_a_cache_holds_after_any_additions(engine_of: Any, family: str, seed: int) -> None:
    """Fails if a row lies elsewhere than it is named, is overwritten while it is named, or garbage is attended.

    Sequences attend and add what they like: nothing, holes, positions that they hold already. Some leave.
    """
    rng = np.random.default_rng(seed)
    ours, theirs = engine_of("tensorrt", family), engine_of("torch", family)
    batch, everything = 4, set(range(LENGTH))
    mine, reference = ours.new_cache(batch, LENGTH), theirs.new_cache(batch, LENGTH)
    held: list[set[int]] = [set()] * batch
    for _ in range(12):
        attended = [some(rng, each, 12) for each in held]
        added = [some(rng, everything, 9) for _ in held]
        inputs = step(added, attended)
        assert_close(ours.step(inputs, mine), theirs.step(inputs, reference))
        held = [set(a) | set(b) for a, b in zip(attended, added)]
        look = step([[3, 7]] * batch, held, write_back=False)
        assert_close(ours.step(look, mine), theirs.step(look, reference))
        if batch > 1 and rng.random() < 0.2:
            stay = np.arange(batch) != rng.integers(batch)
            mine, reference = ours.rows_of(mine, stay), theirs.rows_of(reference, stay)
            held, batch = [each for each, stays in zip(held, stay) if stays], batch - 1
            gc.collect()


FIRST = step([range(12), range(5)], [[], []])
SECOND = step([range(12, 30), range(5, 20)], [range(12), range(4)])  # leaves slot 4 of the second sequence behind
KEPT = step([[30, 31]] * 2, [range(12), range(4)], write_back=False)
LEFT = step([[30, 31]] * 2, [[], [4]], write_back=False)
GROWN = step([[30, 31]] * 2, [range(30), [*range(4), *range(5, 20)]], write_back=False)


@pytest.fixture(scope="module")
def directory(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("llada")


@pytest.mark.parametrize("method", ["alloc", "copy_2d", "upload", "download", "synchronise"])
def test_a_failed_addition_loses_nothing_that_it_attended(directory: Path, method: str) -> None:
    """Fails if an addition that breaks at any call leaves a name for garbage, forgets what it read, or leaks."""
    with opened(directory, cuda_graphs=False) as engine:
        cache = engine.new_cache(2, LENGTH)
        engine.step(FIRST, cache)
        kept, left = (engine.step(inputs, cache) for inputs in (KEPT, LEFT))
        engine.step(SECOND, cache)
        grown = engine.step(GROWN, cache)
        pools = engine.hardware.living()
        for calls in range(99):
            del cache
            gc.collect()  # what an error's frames still hold
            cache = engine.new_cache(2, LENGTH)
            engine.step(FIRST, cache)
            before = engine.hardware.counts["copy_2d"]
            engine.hardware.failing[method] = calls
            try:
                engine.step(SECOND, cache)
                break
            except EngineError as error:
                assert f"{method}: cudaErrorSimulated" in str(error)
            engine.hardware.failing.clear()
            assert_close(engine.step(KEPT, cache), kept)
            if engine.hardware.counts["copy_2d"] - before > 2:  # its own rows come after those that moved
                with pytest.raises(EngineError, match="slot 4 is attended but no step of this cache has written it"):
                    engine.step(LEFT, cache)
            else:
                assert_close(engine.step(LEFT, cache), left)
            with pytest.raises(EngineError, match="no step of this cache has written it"):
                engine.step(GROWN, cache)
            engine.step(SECOND, cache)
            assert_close(engine.step(GROWN, cache), grown)
        engine.hardware.failing.clear()
        assert_close(engine.step(GROWN, cache), grown)
        assert calls == {"alloc": 0, "copy_2d": 4, "upload": 1, "download": 2, "synchronise": 1}[method]
        assert engine.hardware.living() == pools


def test_a_device_without_room_leaves_the_cache_as_it_was(directory: Path) -> None:
    """Fails if a cache that cannot move to a larger buffer is lost."""
    with opened(directory) as engine:
        cache = engine.new_cache(2, LENGTH)
        engine.step(FIRST, cache)
        kept, left = (engine.step(inputs, cache) for inputs in (KEPT, LEFT))
        engine.hardware.failing["alloc"] = 0
        with pytest.raises(EngineError, match="MiB for keys and values"):
            engine.step(SECOND, cache)
        assert_close(engine.step(KEPT, cache), kept)
        assert_close(engine.step(LEFT, cache), left)


def test_one_sequence_grows_where_it_lies(directory: Path) -> None:
    """Fails if a cache of one sequence takes a second buffer, or more rows are copied than were added."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LENGTH)
        engine.step(step([range(12)], [[]]), cache)
        assert cache.buffer is not None
        where, living = cache.buffer, engine.hardware.living()
        engine.step(step([range(12, 20)], [range(12)]), cache)
        engine.step(step([range(20, 30)], [range(20)]), cache)
        assert cache.buffer is where and engine.hardware.counts["copy_2d"] == 2
        scratch = engine.hardware.living() - living
        assert 0 < scratch < living


def test_a_batch_moves_once(directory: Path) -> None:
    """Fails if every addition is another shape, or moves the whole cache."""
    with opened(directory) as engine:
        cache = engine.new_cache(2, LENGTH)
        engine.step(FIRST, cache)
        engine.step(SECOND, cache)
        where, shape, copies = cache.buffer, cache.pitch, engine.hardware.counts["copy_2d"]
        engine.step(step([range(30, 36)] * 2, [range(30), range(5, 20)]), cache)
        assert (cache.buffer, cache.pitch) == (where, shape) and shape >= LENGTH
        assert engine.hardware.counts["copy_2d"] == copies + 2


def test_a_first_block_that_failed_is_not_attended(make_bundle: Callable[..., Path]) -> None:
    """Fails if padding reads a cache that was laid out for rows which never came: 0 times NaN is NaN."""
    with opened(make_bundle("sdar")) as engine:
        cache = engine.new_cache(1, LENGTH)
        engine.hardware.failing["upload"] = 0
        with pytest.raises(EngineError, match="upload"):
            engine.step(step([range(4)], [[]]), cache)
        engine.hardware.failing.clear()
        looks = step([range(4)], [[]], write_back=False)
        assert_close(engine.step(looks, cache), engine.step(looks, engine.new_cache(1, LENGTH)))


def test_more_rows_than_an_engine_takes_are_refused_before_the_launch(directory: Path) -> None:
    """Fails if rows are copied behind the end of a cache, or a refused addition changes it."""
    with opened(directory) as engine:
        cache = engine.new_cache(1, LONGEST)
        engine.step(step([range(LONGEST)], [[]], length=LONGEST), cache)
        ran = engine.simulation.counts["executions"]
        with pytest.raises(EngineError, match="T is 514, but the cached profile of this engine takes 1 to 512"):
            engine.step(step([[3, 4]], [[LONGEST - 1]], length=LONGEST), cache)
        assert engine.simulation.counts["executions"] == ran
        engine.step(step([[3, 4]], [range(LONGEST)], write_back=False, length=LONGEST), cache)


def test_rows_of_a_cache_are_its_own(directory: Path) -> None:
    """Fails if rows that left share memory with those that stayed, or wait for a step before they are copied."""
    with opened(directory) as engine:
        cache = engine.new_cache(2, LENGTH)
        engine.step(FIRST, cache)
        alone = replace(KEPT, canvas=KEPT.canvas[1:], gather_indices=KEPT.gather_indices[1:])
        alone = replace(alone, cache_indices=table(range(5)), decode_rows=KEPT.decode_rows[1:])
        chosen = engine.rows_of(cache, np.array([False, True]))
        again = engine.rows_of(cache, np.array([False, True]))
        expected = engine.step(alone, chosen)
        engine.step(replace(FIRST, canvas=FIRST.canvas[::-1].copy()), cache)
        del cache
        gc.collect()
        engine.step(replace(FIRST, canvas=FIRST.canvas * 0), engine.new_cache(2, LENGTH))
        assert_close(engine.step(alone, chosen), expected)
        assert_close(engine.step(alone, again), expected)
        empty = engine.rows_of(engine.new_cache(3, LENGTH), np.array([True, False, True]))
        assert empty.batch == 2 and empty.buffer is None


def test_caches_that_cannot_be_parted_say_why(directory: Path) -> None:
    """Fails if another engine's memory is copied, or a closed engine is used."""
    chosen = np.array([True])
    with opened(directory) as engine, opened(directory) as other:
        with pytest.raises(EngineError, match="another engine"):
            engine.rows_of(other.new_cache(1, LENGTH), chosen)
        cache = engine.new_cache(1, LENGTH)
        engine.close()
        with pytest.raises(EngineError, match="tensorrt is closed"):
            engine.rows_of(cache, chosen)


def options_for(cache_mode: str) -> GenerationOptions:
    """Blocks of 8; the number of passes does not depend on the tokens."""
    schedule = NOTHING if cache_mode == BLOCKS else Full()
    settings: dict[str, Any] = {"decoder": "fixed", "steps": 12, "early_termination": False}
    return GenerationOptions(gen_length=32, block_length=8, cache=cache_mode, schedule=schedule, **settings)


def prompts(*lengths: int) -> list[Request]:
    """Random tokens."""
    rng = np.random.default_rng(0)
    return [Request(tuple(rng.integers(2, MASK, length).tolist())) for length in lengths]


@each_mode
@pytest.mark.parametrize("lengths", [(9,), (5, 23, 11)])
def test_a_second_request_replays_and_allocates_nothing(
    make_bundle: Any, cache_mode: str, lengths: tuple[int, ...]
) -> None:
    """Fails if a cache that grows makes shapes, recordings or buffers anew for a request that came before."""
    with opened(make_bundle(MODES[cache_mode])) as engine:
        for _ in range(3):
            run(engine, prompts(*lengths), options_for(cache_mode))
        before, replays = engine.hardware.counts.copy(), engine.simulation.counts["replays"]
        events = list(generate(engine, prompts(*lengths), options_for(cache_mode)))
        assert all(engine.hardware.counts[name] == before[name] for name in ("alloc", "free", "begin_capture"))
        assert engine.simulation.counts["replays"] - replays == len(events)


@each_mode
def test_a_batch_keeps_its_size_within_a_block(make_bundle: Any, cache_mode: str) -> None:
    """Fails if rows that wait leave in the middle of a block, which is a new shape and a copy for little gain."""
    sizes: dict[int, set[int]] = {}
    with opened(make_bundle(MODES[cache_mode])) as engine:
        plain = engine.step

        def watched(inputs: StepInputs, cache: Any) -> StepOutputs:
            sizes.setdefault(len(inputs.canvas), set())
            return plain(inputs, cache)

        engine.step = watched  # type: ignore[method-assign]
        options = replace(options_for(cache_mode), decoder="threshold", steps=None, threshold=0.4)
        events = list(generate(engine, prompts(5, 23, 11, 2), options))
    assert list(sizes) == [4] and min(len(event.active) for event in events) < 4


@each_mode
def test_threads_may_share_an_engine(engine_of: Any, cache_mode: str) -> None:
    """Fails if a buffer that one request gave back is lent to another while its rows are still wanted."""
    engine, options = engine_of("tensorrt", MODES[cache_mode]), options_for(cache_mode)
    batches = [prompts(3 + 2 * index, 19 - index) for index in range(6)]
    alone = [run(engine, batch, options) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda batch: run(engine, batch, options), batches))
    for ours, theirs in zip(together, alone):
        assert [(row.tokens, row.committed) for row in ours] == [(row.tokens, row.committed) for row in theirs]
