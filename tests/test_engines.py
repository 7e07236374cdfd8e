"""One step of an engine: what a cache holds, whose it is, and where it lies.

Every engine is compared with the eager one, whose caches have a row for every position.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from checkpoints import FAMILIES, MASK, OPENERS
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpad.runtime.engines import onnx as onnx_engine
from dpad.runtime.engines.base import Engine, StepInputs, StepOutputs
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.rows import CacheRows
from dpad.runtime.errors import EngineError, EngineUnavailable

LENGTH = 40

each_engine = pytest.mark.parametrize("engine", ["torch", "onnxruntime", "tensorrt"])
each_family = pytest.mark.parametrize("family", FAMILIES)


def table(*rows: Any) -> NDArray[np.int64]:
    """Index rows, padded with -1 to the longest."""
    lists = [list(row) for row in rows]
    width = max(map(len, lists))
    return np.array([row + [-1] * (width - len(row)) for row in lists], dtype=np.int64).reshape(len(lists), width)


def canvas(rows: int, seed: int = 0) -> NDArray[np.int64]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(2, MASK, (rows, LENGTH))


def refresh(*gather: Any, seed: int = 0) -> StepInputs:
    """A step that writes the positions `gather`, one iterable a row."""
    rows = len(gather)
    nothing = np.empty((rows, 0), dtype=np.int64)
    return StepInputs(canvas(rows, seed), table(*gather), nothing, np.zeros((rows, 1), np.int64), write_back=True)


def cached(gather: list[Any], attended: list[Any], seed: int = 0) -> StepInputs:
    """A step of the positions `gather` that attends the slots `attended`."""
    first_rows = np.tile(np.arange(min(len(list(row)) for row in gather)), (len(gather), 1))
    return StepInputs(canvas(len(gather), seed), table(*gather), table(*attended), first_rows, want_logits=True)


def assert_close(ours: StepOutputs, theirs: StepOutputs) -> None:
    """Equal tokens, logits within float32's rounding."""
    np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
    assert ours.logits is not None and theirs.logits is not None
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=0, atol=2e-4)


# A refresh thinned by DPad and unequal in length, then steps that attend some of what it wrote.
KEPT = ([*range(20), 23, 27, 38], [*range(12), 30])
STEPS = [
    cached([range(8, 16), range(4, 10)], [[*range(8), 23, 38], [*range(4), 30]]),
    cached([range(8, 16), range(4, 10)], [[], [0]]),
    cached([[*range(15, 20), 25], [*range(12)]], [[27, 3], []]),
]


@each_engine
@each_family
def test_cached_steps_read_the_rows_of_their_positions(engine_of: Any, engine: str, family: str) -> None:
    """Fails if a slot is looked up in the wrong row, or a pad of a shorter row is attended."""
    opened, reference = engine_of(engine, family), engine_of("torch", family)
    cache, theirs = opened.new_cache(2, LENGTH), reference.new_cache(2, LENGTH)
    for seed in (0, 1):  # the second refresh must replace the first
        opened.step(refresh(*KEPT, seed=seed), cache)
        reference.step(refresh(*KEPT, seed=seed), theirs)
        for inputs in STEPS:
            assert_close(opened.step(inputs, cache), reference.step(inputs, theirs))


@each_engine
def test_a_refresh_padded_to_attend_nothing_replaces_another(engine_of: Any, engine: str) -> None:
    """Fails if the pads of a padded refresh are looked up in the cache that it is about to replace."""
    opened = engine_of(engine, "llada")
    cache = opened.new_cache(2, LENGTH)
    padded = replace(refresh(*KEPT, seed=1), cache_indices=np.full((2, 16), -1))
    plain = opened.step(replace(refresh(*KEPT, seed=1), want_logits=True), opened.new_cache(2, LENGTH))
    for _ in range(2):
        assert_close(opened.step(replace(padded, want_logits=True), cache), plain)


@each_engine
@each_family
def test_two_caches_of_one_engine_do_not_meet(engine_of: Any, engine: str, family: str) -> None:
    """Fails if a refresh of one request changes what another request attends."""
    opened: Engine = engine_of(engine, family)
    alone = []
    for seed in (0, 1):
        cache = opened.new_cache(2, LENGTH)
        opened.step(refresh(*KEPT, seed=seed), cache)
        alone.append([opened.step(inputs, cache) for inputs in STEPS])
    caches = [opened.new_cache(2, LENGTH) for _ in range(2)]
    for seed, cache in enumerate(caches):
        opened.step(refresh(*KEPT, seed=seed), cache)
    for index, inputs in enumerate(STEPS):
        for seed, cache in enumerate(caches):
            assert_close(opened.step(inputs, cache), alone[seed][index])
    assert not np.allclose(alone[0][0].logits, alone[1][0].logits, atol=1e-2), "the caches are alike"


@each_family
@pytest.mark.parametrize("attended", [[0, 21], [39]])
def test_a_position_that_was_never_written_is_not_attended(engine_of: Any, family: str, attended: list[int]) -> None:
    """Fails if a row that holds something else, or nothing, is read as position 21 or 39."""
    engine: Engine = engine_of("onnxruntime", family)
    cache = engine.new_cache(1, LENGTH)
    step = cached([range(8, 16)], [attended])
    with pytest.raises(EngineError, match=f"slot {attended[0]} "):
        engine.step(step, cache)
    engine.step(refresh(KEPT[0]), cache)
    with pytest.raises(EngineError, match=f"slot {attended[-1]} "):
        engine.step(step, cache)
    engine.step(refresh([*KEPT[0], 21, 39]), cache)
    engine.step(step, cache)
    engine.step(refresh(KEPT[0]), cache)  # forgets what the longer one wrote
    with pytest.raises(EngineError, match=f"slot {attended[-1]} "):
        engine.step(step, cache)


@each_engine
def test_a_cache_without_slots_serves_a_step_that_uses_none(engine_of: Any, engine: str) -> None:
    """Fails if decoding without a cache needs one, or padding of `cache_indices` counts as attending it."""
    opened: Engine = engine_of(engine, "llada")
    plain = cached([range(8)], [[]])
    expected = opened.step(plain, opened.new_cache(1, 0))
    padded = replace(plain, cache_indices=np.full((1, 3), -1))
    assert_close(opened.step(padded, opened.new_cache(1, LENGTH)), expected)


@each_engine
def test_a_cache_of_another_shape_is_refused(engine_of: Any, engine: str) -> None:
    """Fails if a row or a slot that the cache does not have is read or written."""
    opened: Engine = engine_of(engine, "llada")
    with pytest.raises(EngineError, match="2 rows .* cache of 1"):
        opened.step(refresh(*KEPT), opened.new_cache(1, LENGTH))
    with pytest.raises(EngineError, match="slot 38 .* 38 slots"):
        opened.step(refresh(*KEPT), opened.new_cache(2, 38))
    with pytest.raises(EngineError, match="slot 38 .* 30 slots"):
        opened.step(STEPS[0], opened.new_cache(2, 30))
    opened.step(refresh(*KEPT), opened.new_cache(2, 39))


@each_engine
@each_family
def test_a_refresh_that_attends_extends_the_cache(engine_of: Any, engine: str, family: str) -> None:
    """Fails if rows that it attended, or its own, are not what later steps read; or a cache's row is not its own."""
    opened: Engine = engine_of(engine, family)
    whole, extended = opened.new_cache(2, LENGTH), opened.new_cache(2, LENGTH)
    for cache in (whole, extended):
        opened.step(refresh(*KEPT), cache)
    attended = [[p for p in row if p < 8] for row in KEPT]
    added = [[p for p in row if p >= 8][:6] for row in KEPT]
    extension = cached(added, attended)
    plain = opened.step(extension, whole)
    assert_close(opened.step(replace(extension, write_back=True), extended), plain)
    later = cached([[30, 31], [30, 31]], [a + b for a, b in zip(attended, added)])
    both = opened.step(later, extended)
    assert not np.allclose(both.logits, opened.step(later, whole).logits, atol=1e-3), "its own rows were not kept"
    second = opened.rows_of(extended, np.array([False, True]))
    one = opened.step(replace(cached([[30, 31]], [attended[1] + added[1]]), canvas=later.canvas[1:]), second)
    assert np.allclose(one.logits, both.logits[1:], atol=1e-4)
    if engine != "torch":  # an eager cache forgets nothing
        with pytest.raises(EngineError, match="no step of this cache has written it"):
            opened.step(cached([[30, 31]] * 2, [[row[-1]] for row in KEPT]), extended)


@each_engine
def test_malformed_inputs_are_refused_before_the_launch(engine_of: Any, engine: str) -> None:
    """Fails if an engine skips `check_step`, or a refused step changes the cache."""
    opened: Engine = engine_of(engine, "llada")
    cache = opened.new_cache(2, LENGTH)
    opened.step(refresh(*KEPT), cache)
    before = opened.step(STEPS[0], cache)
    wrong = refresh(*KEPT, seed=1)
    wrong.gather_indices[1, 3] = LENGTH
    with pytest.raises(EngineError, match="gather_indices holds 40, outside -1 to 39"):
        opened.step(wrong, cache)
    assert_close(opened.step(STEPS[0], cache), before)


def test_a_refresh_that_fails_leaves_no_stale_cache(make_bundle: Any, monkeypatch: Any) -> None:
    """Fails if keys of the block before are attended after ONNX Runtime refused the next refresh."""
    engine = OPENERS["onnxruntime"](make_bundle("llada"))
    cache = engine.new_cache(2, LENGTH)
    engine.step(refresh(*KEPT), cache)

    class Failing:
        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("out of memory")

    session = engine.session
    monkeypatch.setattr(engine, "session", Failing())
    with pytest.raises(EngineError, match="out of memory"):
        engine.step(refresh(*KEPT, seed=1), cache)
    monkeypatch.setattr(engine, "session", session)
    with pytest.raises(EngineError, match="no step of this cache has written it"):
        engine.step(STEPS[0], cache)


class Recorder:
    """An `IOBinding` on a CPU that stands for a device: it notes what is bound where."""

    def __init__(self, binding: Any, bound: dict[str, Any]) -> None:
        self._binding, self.bound = binding, bound

    def bind_output(self, name: str, device: str, _: int = 0) -> None:
        self.bound[name] = device
        self._binding.bind_output(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_caches_never_leave_the_device(make_bundle: Any, monkeypatch: Any, dtype: str) -> None:
    """Fails if a cache goes through the host, is bound again without a refresh, or is copied."""
    engine = OPENERS["onnxruntime"](make_bundle("llada", dtype=dtype))
    cache = engine.new_cache(2, LENGTH)
    devices: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    real = ort.OrtValue.ortvalue_from_numpy
    sent: list[str] = []

    def send(array: NDArray[Any], device: str, _: int) -> Any:
        sent.append(device)
        assert array.dtype == np.int64
        return real(array)

    monkeypatch.setattr(engine, "_device", "device")
    monkeypatch.setattr(onnx_engine.ort.OrtValue, "ortvalue_from_numpy", send)
    bind = cache.binding.bind_ortvalue_input
    recorder: Any = Recorder(cache.binding, devices)
    recorder.bind_ortvalue_input = lambda name, value: (inputs.update({name: value}), bind(name, value))
    cache.binding = recorder
    engine.step(refresh(*KEPT), cache)
    new = [name for pair in engine.contract.new_names() for name in pair]
    caches = [name for pair in engine.contract.cache_names() for name in pair]
    assert {name: devices.pop(name) for name in new} == dict.fromkeys(new, "device")
    assert devices == dict.fromkeys(["token_ids", "confidence", "odds_against"], "cpu")
    outputs = cache.binding.get_outputs()[3:]
    assert [inputs[name].data_ptr() for name in caches] == [value.data_ptr() for value in outputs]
    assert {tuple(inputs[name].shape()) for name in caches} == {(2, 23, 2, 32)}
    inputs.clear()
    engine.step(STEPS[0], cache)
    assert list(inputs) == ["canvas", "gather_indices", "cache_indices", "decode_rows"]
    assert sent == ["device"] * 8


def test_bfloat16_caches_need_no_numpy() -> None:
    """Fails if an empty bfloat16 cache cannot be made: numpy has no such dtype, and a CPU no kernels for it."""
    kind = onnx_engine._ELEMENT_TYPES["bfloat16"]
    empty = ort.OrtValue.ortvalue_from_shape_and_type((2, 0, 1, 32), kind, "cpu", 0)
    assert (empty.data_type(), list(empty.shape())) == ("tensor(bfloat16)", [2, 0, 1, 32])


def test_a_provider_that_does_not_start_is_an_error(make_bundle: Any, monkeypatch: Any) -> None:
    """Fails if the engine called "onnxruntime-cuda" may run on the CPU because a CUDA library is missing."""
    path: Path = make_bundle("llada") / "step.onnx"
    contract = OPENERS["onnxruntime"](make_bundle("llada")).contract
    real = ort.InferenceSession
    monkeypatch.setattr(onnx_engine, "require_provider", lambda provider: None)
    monkeypatch.setattr(onnx_engine.ort, "InferenceSession", lambda p, options, **named: real(p, options))
    with pytest.raises(EngineUnavailable, match="could not start CUDAExecutionProvider"):
        OnnxEngine(path, contract, "float32", provider="cuda")


@given(st.data())
def test_rows_are_found_where_they_were_written(data: st.DataObject) -> None:
    """Fails if a slot is found in another row than its own, or one that was not written is found."""
    slots = data.draw(st.integers(1, 12))
    kept = [data.draw(st.lists(st.integers(0, slots - 1), unique=True)) for _ in range(3)]
    rows = CacheRows(3, slots)
    rows.wrote(table(*([*range(slots)] for _ in kept)))  # must be forgotten
    gather = table(*kept)
    rows.wrote(gather)
    asked = [data.draw(st.lists(st.sampled_from([-1, *row]))) for row in kept]
    wanted = table(*asked)
    found = rows.find(wanted)
    assert found.shape == wanted.shape
    for line, row in enumerate(found):
        assert [gather[line, r] if r >= 0 else -1 for r in row] == wanted[line].tolist()
    missing = [set(range(slots)) - set(row) for row in kept]
    line = next((i for i, m in enumerate(missing) if m), None)
    if line is not None:
        wanted = table(*([min(missing[line])] if i == line else [] for i in range(3)))
        with pytest.raises(EngineError, match=f"slot {min(missing[line])} "):
            rows.find(wanted)
