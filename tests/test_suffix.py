"""DPad's suffix schedules: the published keep probabilities, the window, seeds, explicit positions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpad.runtime.decoding.suffix import Explicit, Full, Gaussian, SuffixSchedule, Uniform
from dpad.runtime.decoding.thinning import survivors
from dpad.runtime.errors import InvalidRequest


class Draws(np.random.Generator):
    """A generator with given uniform draws."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = np.array(values)

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return self.values[:size]


def published(i: int, k: float, scale: float, window: int) -> float:
    """The keep probability at distance i by the paper's formula; above 1 it is certain."""
    if i >= window:
        return 0.0
    z = k * i / (window - 1)
    return scale * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("k,scale,window", [(3.0, 2.0, 128), (4.0, 2.0, 256), (3.0, 2.3, 64), (4.0, 1.6, 33)])
def test_kept_exactly_where_the_draw_is_below_the_probability(k: float, scale: float, window: int) -> None:
    """Fails if the formula, its centre, its width or the comparison differs."""
    schedule = Gaussian(k=k, scale=scale, window=window)
    for offset in (-1e-9, 1e-9):
        draws = Draws([published(i, k, scale, window) + offset for i in range(300)])
        kept = schedule.keep(0, 300, 512, draws).tolist()
        assert kept == (list(range(window)) if offset < 0 else [])


def test_probability_one_always_keeps() -> None:
    """Fails if a position with a probability above 1 can be dropped, as the nearest one with scale 2.6."""
    schedule = Gaussian(k=3, scale=2.6, window=64)
    certain = [i for i in range(64) if published(i, 3, 2.6, 64) >= 1]
    assert certain
    for seed in range(200):
        kept = schedule.keep(0, 64, 64, np.random.default_rng(seed))
        assert set(certain) <= set(kept.tolist())


@pytest.mark.parametrize("k,scale,window", [(3.0, 2.0, 128), (4.0, 1.6, 256)])
def test_frequencies(k: float, scale: float, window: int) -> None:
    """Fails if draws are shared between positions or not uniform, or the expected count is wrong."""
    schedule, runs = Gaussian(k=k, scale=scale, window=window), 3000
    counts = np.zeros(window)
    totals = []
    for seed in range(runs):
        kept = schedule.keep(0, 400, 512, np.random.default_rng(seed))
        counts[kept] += 1
        totals.append(len(kept))
    expected = np.array([min(published(i, k, scale, window), 1.0) for i in range(window)])
    deviation = np.sqrt(expected * (1 - expected) / runs)
    assert (np.abs(counts / runs - expected) < 5 * deviation + 1e-3).all()
    assert np.mean(totals) == pytest.approx(0.5 * scale * window / k, rel=0.03)
    assert np.std(totals) == pytest.approx(math.sqrt((expected * (1 - expected)).sum()), rel=0.1)


def schedules() -> st.SearchStrategy[SuffixSchedule]:
    """Random schedules that are valid for 96 new tokens."""
    window = st.none() | st.integers(1, 96)
    k, scale = st.floats(0, 8), st.floats(0, 4)
    uniform = st.integers(1, 96).flatmap(lambda w: st.builds(Uniform, st.integers(0, w), st.just(w)))
    return st.just(Full()) | st.builds(Gaussian, k, scale, window) | uniform


@given(schedules(), st.integers(0, 5), st.integers(0, 96), st.integers(0, 2**32))
def test_every_schedule_is_pure_seeded_and_ascending(
    schedule: SuffixSchedule, block: int, length: int, seed: int
) -> None:
    """Fails if distances repeat, descend, or are outside the suffix or the window, or a seed gives two results."""
    schedule.check(96, 16)
    kept = schedule.keep(block, length, 96, np.random.default_rng(seed))
    assert kept.dtype == np.int64 and kept.ndim == 1
    assert (np.diff(kept) > 0).all()
    assert kept.size == 0 or (kept[0] >= 0 and kept[-1] < length)
    window = getattr(schedule, "window", None)
    assert window is None or kept.size == 0 or kept[-1] < window
    again = schedule.keep(block, length, 96, np.random.default_rng(seed))
    assert kept.tolist() == again.tolist()


def test_global_random_state_is_not_touched() -> None:
    """Fails if a schedule reads or changes numpy's global random state."""
    before = np.random.get_state()[1].tolist()
    Gaussian(window=64).keep(0, 64, 64, np.random.default_rng(1))
    Uniform(5, 64).keep(0, 64, 64, np.random.default_rng(1))
    assert np.random.get_state()[1].tolist() == before


def test_uniform_counts_and_spreads() -> None:
    """Fails if positions repeat, the count is wrong, or part of the window is never drawn."""
    schedule = Uniform(count=5, window=20)
    drawn = np.stack([schedule.keep(0, 50, 64, np.random.default_rng(seed)) for seed in range(800)])
    assert drawn.shape == (800, 5)
    frequency = np.bincount(drawn.ravel(), minlength=20) / 800
    assert len(frequency) == 20 and (np.abs(frequency - 0.25) < 0.08).all()
    assert schedule.keep(0, 3, 64, np.random.default_rng(0)).tolist() == [0, 1, 2]


def test_full_keeps_all() -> None:
    """Fails if `Full` drops a position."""
    assert Full().keep(0, 70, 96, np.random.default_rng(0)).tolist() == list(range(70))


@pytest.mark.parametrize("gen_length,window", [(512, 256), (64, 64)])
def test_default_window(gen_length: int, window: int) -> None:
    """Fails if the default window is not min(256, gen_length)."""
    schedule = Gaussian(k=0, scale=3)  # keeps everything inside the window
    assert len(schedule.keep(0, 1000, gen_length, np.random.default_rng(0))) == window


def test_explicit_from_positions() -> None:
    """Fails if canvas positions are not converted to distances from each block's end."""
    schedule = Explicit.from_positions([[26, 30, 41], [42, 57], []], prompt_length=10, block_length=16)
    assert schedule == Explicit(((0, 4, 15), (0, 15), ()))
    rng = np.random.default_rng(0)
    assert schedule.keep(0, 32, 48, rng).tolist() == [0, 4, 15]
    assert schedule.keep(1, 16, 48, rng).tolist() == [0, 15]
    assert schedule.keep(2, 0, 48, rng).tolist() == []


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_positions_may_be_of_any_whole_kind(kind: Any) -> None:
    """Fails if positions in arrays or tensors are refused."""
    given = [kind([26, 30]), kind([42])]
    schedule = Explicit.from_positions(given, prompt_length=10, block_length=16)
    assert schedule == Explicit(((0, 4), (0,)))
    schedule.check(48, 16)
    for broken in ([[26.5]], [26], [["26"]]):
        with pytest.raises(InvalidRequest, match="lists of integers"):
            Explicit.from_positions(broken, prompt_length=10, block_length=16)  # type: ignore[arg-type]


BAD: dict[str, tuple[SuffixSchedule, str]] = {
    "window over gen_length": (Gaussian(window=65), "65.*64"),
    "window 0": (Gaussian(window=0), "window 0"),
    "negative k": (Gaussian(k=-1), "-1"),
    "negative scale": (Gaussian(scale=-0.5), "-0.5"),
    "k not a number": (Gaussian(k=float("nan")), "nan"),
    "scale not a number": (Gaussian(scale=float("nan")), "nan"),
    "infinite k": (Gaussian(k=float("inf")), "inf"),
    "infinite scale": (Gaussian(scale=float("inf")), "inf"),
    "uniform window": (Uniform(3, window=65), "65.*64"),
    "uniform count": (Uniform(21, window=20), "21.*20"),
    "uniform negative": (Uniform(-1), "-1"),
    "explicit repeats": (Explicit(((1, 1),)), "block 0"),
    "explicit descends": (Explicit(((1,), (4, 2))), "block 1"),
    "explicit before the block's end": (Explicit.from_positions([[25]], 10, 16), "block 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_schedules_are_refused(case: str) -> None:
    """Fails if an invalid schedule is accepted, or the message lacks the value."""
    schedule, words = BAD[case]
    with pytest.raises(InvalidRequest, match=words):
        schedule.check(64, 16)


def test_explicit_past_the_canvas_or_too_short() -> None:
    """Fails if a position outside the canvas is accepted, or a missing block is not an error."""
    with pytest.raises(InvalidRequest, match="distance 32 of block 0"):
        Explicit(((32,), (1,))).check(48, 16)
    early = Explicit(((1,),))
    early.check(48, 16)
    with pytest.raises(InvalidRequest, match="reached block 1"):
        early.keep(1, 16, 48, np.random.default_rng(0))
    Explicit(((31,), (15,))).check(48, 16)  # no positions follow the last block


class Own(Full):
    """A caller's schedule that returns `kept`, or raises it if it is an error."""

    def __init__(self, kept: Any) -> None:
        object.__setattr__(self, "kept", kept)

    def keep(self, block: int, length: int, gen_length: int, rng: np.random.Generator) -> Any:
        if isinstance(kept := vars(self)["kept"], Exception):
            raise kept
        return kept


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (None, "array of shape"),
        ([[0]], "array of shape"),
        ([0.5], "values of type float64"),
        ([True, False], "numpy.flatnonzero"),
        (["0"], "values of type <U1"),
        ([3, 1], "distance 1 after 3"),
        ([0, 0], "distance 0 after 0"),
        ([-1], "distance -1"),
        ([8], "distance 8"),
        ([[0], 1], "failed in its method keep: ValueError"),
        (KeyError("x"), "failed in its method keep: KeyError"),
    ],
)
def test_a_schedule_of_the_callers_is_blamed_for_what_it_keeps(kept: Any, said: str) -> None:
    """Fails if positions outside the canvas reach an engine, or the error is Python's or names the engine."""
    with pytest.raises(InvalidRequest, match=f"schedule Own.*{said}"):
        survivors(Own(kept), 0, 8, 16, np.random.default_rng(0))
    assert survivors(Own([0, 7]), 0, 8, 16, np.random.default_rng(0)).tolist() == [0, 7]
    assert survivors(Own([]), 0, 8, 16, np.random.default_rng(0)).dtype == np.int64
