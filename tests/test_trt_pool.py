"""The pool of `GpuEngine` on simulated hardware, whose memory is NaN until it is written.

Its contents are compared with the eager engine's pool, and its copies with one copy per row.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import MASK
from decoding import run
from host_trt import ACTIVATION_BYTES, opened
from numpy.typing import NDArray

from dpad.export.parity.runners import run_plan
from dpad.runtime.cache import BLOCKS
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import NOTHING, Full
from dpad.runtime.engines.slots import slot_bytes
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, InvalidRequest

LENGTH, LONGEST, BATCH = 40, 512, 4  # length of the canvases here; limits of the engine
MODES = {"extend": "llada", BLOCKS: "fast_dllm"}


@pytest.fixture(scope="module")
def directory(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("llada")


def table(rows: list[Any]) -> NDArray[np.int64]:
    """Index rows, padded with -1 to the longest."""
    width = max(1, *map(len, rows))
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], dtype=np.int64)


def step(gather: list[Any], attended: list[Any], written: list[Any] | None = None, length: int = LENGTH) -> StepInputs:
    """A step with the positions `gather`, one iterable for each sequence, that attends and writes slots."""
    canvas = np.random.default_rng(5).integers(2, MASK, (len(gather), length))
    rows = np.zeros((len(gather), 1), dtype=np.int64)
    keeps = None if written is None else table(written)
    return StepInputs(canvas, table(gather), table(attended), rows, keeps, want_logits=True)


def assert_close(ours: StepOutputs, theirs: StepOutputs) -> None:
    """Assert that outputs are equal within float32's rounding and have no NaN."""
    assert ours.logits is not None
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=2e-4, equal_nan=False)


@pytest.mark.parametrize("family", MODES.values())
@pytest.mark.parametrize("seed", range(2))
def test_what_a_pool_holds_after_any_steps(engine_of: Any, family: str, seed: int) -> None:
    """Fails if a row is written to another slot, a row of another sequence is overwritten, or unwritten memory is read.

    Sequences attend random subsets of their rows, add rows of which some are not kept, and leave.
    """
    rng = np.random.default_rng(seed)
    ours, theirs = engine_of("tensorrt", family), engine_of("torch", family)
    free = [int(slot) for slot in rng.permutation(np.arange(1, 200))]
    held: list[list[int]] = [[] for _ in range(BATCH)]
    for _ in range(12):
        attended = [[int(s) for s in rng.permutation(each)[: rng.integers(0, 13)]] for each in held]
        added = [rng.permutation(LENGTH)[: rng.integers(0, 10)].tolist() for _ in held]
        slots = [[free.pop() if rng.random() < 0.8 else -1 for _ in row] for row in added]
        inputs = step(added, attended, slots)
        inputs = step(
            added, attended, [list(row) + [-1] * (inputs.gather_indices.shape[1] - len(row)) for row in slots]
        )
        assert_close(ours.step(inputs), theirs.step(inputs))
        for mine, row in zip(held, slots):
            mine += [slot for slot in row if slot >= 0]
        look = step([[3, 7]] * BATCH, held)
        assert_close(ours.step(look), theirs.step(look))
        leaves = held[int(rng.integers(BATCH))]
        free = [*leaves, *free]
        leaves.clear()


def test_a_step_queues_one_copy_for_a_sequence_whose_slots_lie_together(directory: Path) -> None:
    """Fails if the number of copies grows with rows or layers, or a step that keeps nothing makes a copy."""
    with opened(directory) as engine:
        copies = engine.hardware.counts
        engine.step(step([range(12), range(5)], [[], []]))
        assert copies["copy_2d"] == 0
        engine.step(step([range(12), range(5)], [[], []], [range(1, 13), [*range(50, 55), *[-1] * 7]]))
        assert copies["copy_2d"] == 2


def test_nothing_is_allocated_once_it_is_open(directory: Path) -> None:
    """Fails if a step allocates device memory."""
    with opened(directory) as engine:
        before = engine.hardware.counts["alloc"]
        for batch, length in ((1, LENGTH), (BATCH, LENGTH), (1, LONGEST), (2, LONGEST)):
            engine.step(step([range(length)] * batch, [[]] * batch, length=length))
        assert engine.hardware.counts["alloc"] == before


def fixed_bytes(directory: Path) -> int:
    """Device memory in bytes besides keys and values."""
    with opened(directory) as engine:
        slot = slot_bytes(engine.contract, engine.dtype)
        return int(engine.hardware.living()) - slot * (engine.slots.size + engine.most_rows)


def test_the_pool_takes_what_the_limits_need_and_no_more_than_there_is(directory: Path) -> None:
    """Fails if a pool is larger than the largest batch needs, fills the device completely, or its rows do not fit."""
    fixed = fixed_bytes(directory)
    with opened(directory) as engine:
        slot = slot_bytes(engine.contract, engine.dtype)
        assert (engine.slots.size, engine.most_rows) == (BATCH * LONGEST + 1, 4 * engine.pass_rows)
    rows = 2 * BATCH * LONGEST
    memory = fixed + rows * slot
    with opened(directory, memory=memory) as engine:
        assert LONGEST < engine.slots.size <= BATCH * LONGEST and LONGEST <= engine.most_rows < BATCH * LONGEST
        assert engine.hardware.free_memory() > 0.1 * memory
        engine.step(step([range(LONGEST)], [[]], [range(1, LONGEST + 1)], length=LONGEST))
        ran = engine.simulation.counts["executions"]
        words = rf"4 x 512 query rows is more than the {engine.most_rows} that memory has room for; use smaller"
        with pytest.raises(EngineError, match=words):
            engine.step(step([range(LONGEST)] * BATCH, [[]] * BATCH, length=LONGEST))
        assert engine.simulation.counts["executions"] == ran


def test_a_pool_of_the_callers_size(directory: Path) -> None:
    """Fails if the pool has another size than requested, or an impossible size is not refused."""
    with opened(directory, slots=65) as engine:
        assert engine.slots.size == 65 and engine.slots.most == 64
        engine.step(step([range(LENGTH)], [[]], [range(25, 65)]))
        with pytest.raises(EngineError, match="write_slots holds 65, outside -1 to 64"):
            engine.step(step([range(LENGTH)], [[]], [range(26, 66)]))
    for slots in (1, 10**9):
        with (
            pytest.raises(InvalidRequest, match="slots .* must be from 2 to"),
            opened(directory, slots=slots),
        ):
            pass
    most = BATCH * LONGEST + 1
    with pytest.raises(EngineError, match=f"{most + 1} are more than the {most} that tensorrt supports; give fewer"):
        with opened(directory, slots=most + 1):
            pass


def test_a_device_without_room_for_one_canvas_says_so(directory: Path) -> None:
    """Fails if a device that is too small gives another error, or memory is not freed."""
    with pytest.raises(EngineError, match="keys and values of 512 tokens take .* GB, .*slots"):
        with opened(directory, memory=fixed_bytes(directory) + ACTIVATION_BYTES):
            pass


def test_parity_gives_every_input_and_gets_every_output(engine_of: Any) -> None:
    """Fails if parity of a plan compares other cache rows than those read and written."""
    ours, theirs = engine_of("tensorrt", "llada"), engine_of("torch", "llada")
    rng, inputs = np.random.default_rng(0), step([range(9), range(4)], [range(1, 30), range(30, 40)])
    small = (inputs.canvas, inputs.gather_indices, inputs.cache_indices, inputs.decode_rows)
    specs = ours.contract.inputs()
    pool = [rng.standard_normal((40, *spec.axes[1:])).astype(np.float32) for spec in specs[4:]]
    for tensor in pool:
        tensor[0] = 0
    feed = {spec.name: array for spec, array in zip(specs, [*small, *pool])}
    for found, expected in zip(run_plan(ours, feed), theirs.run(feed), strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        kept = inputs.gather_indices >= 0 if found.ndim == 4 else slice(None)
        np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-3, atol=2e-4)
    feed |= {name: np.repeat(array, 60, axis=0) for name, array in feed.items() if "cache." in name}
    with pytest.raises(EngineError, match="needs 2400 slots .* has memory for 2049; use a larger GPU"):
        run_plan(ours, feed)


def options_for(cache_mode: str) -> GenerationOptions:
    """Options with blocks of 8 and a number of passes that does not depend on the tokens."""
    schedule = NOTHING if cache_mode == BLOCKS else Full()
    settings: dict[str, Any] = {"decoder": "fixed", "steps": 12, "early_termination": False}
    return GenerationOptions(gen_length=32, block_length=8, cache=cache_mode, schedule=schedule, **settings)


def prompts(*lengths: int) -> list[Request]:
    """Requests of random tokens with these lengths."""
    rng = np.random.default_rng(0)
    return [Request(tuple(rng.integers(2, MASK, length).tolist())) for length in lengths]


def test_a_small_device_decodes_in_smaller_passes(directory: Path, engine_of: Any) -> None:
    """Fails if a pass has more rows than there is memory for."""
    requests, options = prompts(*[150] * BATCH), replace(options_for("extend"), cache="none")
    slot = slot_bytes(engine_of("tensorrt", "llada").contract, "float32")
    with opened(directory, memory=fixed_bytes(directory) + 1400 * slot) as engine:
        assert LONGEST <= engine.most_rows < BATCH * engine.padded("Q", 182)
        ours = run(engine, requests, options)
    theirs = run(engine_of("tensorrt", "llada"), requests, options)
    assert [(row.tokens, row.committed) for row in ours] == [(row.tokens, row.committed) for row in theirs]


@pytest.mark.parametrize("cache_mode", MODES)
@pytest.mark.parametrize("lengths", [(9,), (5, 23, 11)])
def test_a_second_request_replays(make_bundle: Any, cache_mode: str, lengths: tuple[int, ...]) -> None:
    """Fails if a repeated request makes new shapes or recordings."""
    with opened(make_bundle(MODES[cache_mode])) as engine:
        for _ in range(3):
            run(engine, prompts(*lengths), options_for(cache_mode))
        before, counts = engine.hardware.counts.copy(), engine.hardware.counts
        replays, ran = engine.simulation.counts["replays"], engine.simulation.counts["executions"]
        run(engine, prompts(*lengths), options_for(cache_mode))
        assert all(counts[name] == before[name] for name in ("alloc", "free", "begin_capture"))
        assert engine.simulation.counts["executions"] == ran and engine.simulation.counts["replays"] > replays
        assert engine.slots.free == engine.slots.most


@pytest.mark.parametrize("cache_mode", MODES)
def test_threads_may_share_an_engine(engine_of: Any, cache_mode: str) -> None:
    """Fails if freed slots are given to another request while their rows are still read."""
    engine, options = engine_of("tensorrt", MODES[cache_mode]), options_for(cache_mode)
    batches = [prompts(3 + 2 * index, 19 - index) for index in range(6)]
    alone = [run(engine, batch, options) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda batch: run(engine, batch, options), batches))
    for ours, theirs in zip(together, alone):
        assert [(row.tokens, row.committed) for row in ours] == [(row.tokens, row.committed) for row in theirs]
