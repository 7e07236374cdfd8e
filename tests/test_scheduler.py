"""The scheduler: which sequences take part in a pass, which wait, and which get slots."""

from collections.abc import Callable
from typing import Any

import pytest
from decoding import run
from passes import SECONDS, Caller, Passes, members, options_for, passing, request, sequences

from dpad.runtime.decoding.scheduler import Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.turns import PATIENCE
from dpad.runtime.errors import InvalidRequest, QueueFull


@pytest.fixture
def engine(make_bundle: Any) -> Any:
    """A recording engine in torch; batches of 4."""
    return passing(make_bundle("llada"))


def test_a_request_joins_at_the_next_pass_and_leaves_with_its_last(engine: Passes) -> None:
    """Fails if a new request waits until others are finished, or a finished one takes part in a pass."""
    scheduler = Scheduler(engine)
    first, second = sequences(engine, [request(1), request(2)], block_length=32)
    scheduler.add(first)
    assert [members(scheduler) for _ in range(5)] == [[0]] * 5
    scheduler.add(second)
    assert [1] in (members(scheduler), members(scheduler)), "the refresh of the one that came is a pass of its own"
    while not first.finished:
        members(scheduler)
    alone = len(engine.passes)
    assert alone == 33 and engine.sizes.count(2) == 26
    while scheduler.busy:
        assert members(scheduler) == [1]
    assert len(engine.passes) - alone == 5
    assert [s.nfe for s in (first, second)] == [32, 32] and engine.slots.free == engine.slots.most


def test_padding_that_costs_more_than_a_pass_is_not_made(make_bundle: Any) -> None:
    """Fails if different shapes share a pass where padding costs more than a pass, or do not where it costs less."""
    asked = [request(1, 6), request(2, 30)]
    for pass_rows, largest in ((0, 1), (4096, 2)):
        engine = passing(make_bundle("llada"), pass_rows=pass_rows)
        run(engine, asked, options_for(cache="none"))
        assert max(engine.sizes) == largest, pass_rows


def test_no_pass_has_more_rows_than_there_is_memory_for(make_bundle: Any) -> None:
    """Fails if a pass exceeds the limit of rows, although its sequences fit a batch."""
    engine = passing(make_bundle("llada"), pass_rows=4096)
    engine.most_rows = 80
    run(engine, [request(seed, 30) for seed in range(4)], options_for(cache="none"))
    assert {inputs.gather_indices.size for inputs in engine.passes} <= {*range(81)} and len(engine.passes) == 4 * 32


def test_each_has_its_own_options_in_a_pass(make_bundle: Any) -> None:
    """Fails if a temperature, a filter, a banned token or a draw is another sequence's."""
    engine = passing(make_bundle("llada"), pass_rows=4096)
    asked = [
        (request(1, 6), options_for()),
        (request(2, 9), options_for(temperature=1.25, top_k=5, seed=4)),
        (request(3, 12), options_for(temperature=0.5, top_p=0.75)),
    ]
    wanted = [(0.0, 0, 1.0, -1), (1.25, 5, 1.0, -1), (0.5, 0, 0.75, -1)]
    scheduler = Scheduler(engine)
    scheduler.add(*(Sequence(each, options, engine.contract, i) for i, (each, options) in enumerate(asked)))
    while scheduler.busy:
        scheduler.step()
    full = [inputs for inputs in engine.passes if len(inputs.canvas) == 3]
    assert len(full) > 20
    for inputs in full:
        sampling = inputs.sampling
        assert sampling is not None
        for row, canvas in enumerate(inputs.canvas):
            [number] = [
                i for i, (each, _) in enumerate(asked) if tuple(canvas[: len(each.prompt_ids)]) == each.prompt_ids
            ]
            given = (sampling.temperature[row], sampling.top_k[row], sampling.top_p[row], sampling.banned[row])
            assert given == wanted[number]
            assert (sampling.uniform[row] > 0).any() == (number > 0)


def waits(scheduler: Scheduler, left: Callable[[], bool]) -> dict[int, int]:
    """Run while `left()`; returns the longest wait of each sequence, in passes of others, also before its first."""
    since: dict[int, int] = {}
    longest: dict[int, int] = {}
    done = 0
    while left():
        served = members(scheduler)
        done += 1
        for index in served:
            longest[index] = max(longest.get(index, 0), done - since.get(index, 0) - 1)
            since[index] = done
    for index, last in since.items():
        longest[index] = max(longest[index], done - last if scheduler.busy else 0)
    return longest


def test_nobody_starves_beside_fuller_passes(engine: Passes) -> None:
    """Fails if a sequence that cannot share passes waits as long as others arrive that can."""
    pairs = [request(seed, 6 + seed // 2) for seed in range(2 * 20)]
    scheduler = Scheduler(engine, max_running=64)
    asked = sequences(engine, [request(99, 60), *pairs], cache="none")
    scheduler.add(*asked)
    longest = waits(scheduler, lambda: scheduler.passes < 160)
    assert 2 in engine.sizes and longest.keys() == {*range(41)}
    assert max(longest.values()) <= PATIENCE + len(asked)
    scheduler.drain()


def test_a_long_refresh_waits_for_its_budget_and_gets_it(engine: Passes) -> None:
    """Fails if the refresh of a long prompt runs before its budget, or never runs beside full passes."""
    scheduler = Scheduler(engine, max_running=8)
    short = sequences(engine, [request(seed) for seed in range(4)], gen_length=64)
    scheduler.add(*short)
    for _ in range(8):
        members(scheduler)
    [long] = sequences(engine, [request(9, 400)])
    long.index = 9
    scheduler.add(long)
    after = 0
    while 9 not in members(scheduler):
        after += 1
    assert 1 < after <= PATIENCE + 5
    scheduler.drain()


def test_first_come_first_served(make_bundle: Any) -> None:
    """Fails if a request that needs few slots overtakes one that waits for many."""
    engine = passing(make_bundle("llada"), slots=61)
    scheduler = Scheduler(engine)
    asked = sequences(engine, [request(1, 20), request(2, 30), request(3, 4)])  # of 60 slots: 36, 46 and 20
    scheduler.add(*asked)
    first = []
    while scheduler.busy:
        first += [index for index in members(scheduler) if index not in first]
    assert first == [0, 1, 2]
    assert max(engine.sizes) == 1 and all(s.finished for s in asked) and engine.slots.free == 60


def test_a_request_that_the_pool_can_never_hold_is_refused(make_bundle: Any) -> None:
    """Fails if a request larger than the pool waits forever, or one that just fits is refused."""
    engine = passing(make_bundle("llada"), slots=41)
    scheduler = Scheduler(engine)
    fits, large = sequences(engine, [request(1, 24), request(2, 25)])
    with pytest.raises(InvalidRequest, match=r"41 slots .* has 40; shorten it, or load the bundle with more slots"):
        scheduler.add(fits, large)
    assert not scheduler.busy
    scheduler.add(fits)
    while scheduler.busy:
        members(scheduler)
    assert fits.finished


def test_cancelling_frees_slots_at_once(engine: Passes) -> None:
    """Fails if slots of a cancelled sequence are freed late although it is not in the running pass, or are lost."""
    scheduler = Scheduler(engine)
    one, other = sequences(engine, [request(1, 6), request(2, 60)])
    scheduler.add(one, other)
    for _ in range(4):
        members(scheduler)
    engine.hold()
    running = Caller(scheduler.step)
    assert engine.entered.wait(SECONDS)
    inside = one if engine.passes[-1].canvas.shape[1] == len(one.canvas) else other
    outside = other if inside is one else one
    scheduler.cancel(outside)
    assert engine.slots.free == engine.slots.most - inside.need
    scheduler.cancel(inside)
    assert engine.slots.free == engine.slots.most - inside.need, "the pass still writes to them"
    engine.gate.set()
    running.result()
    assert engine.slots.free == engine.slots.most and not scheduler.busy


def test_a_full_queue_takes_all_or_none(engine: Passes) -> None:
    """Fails if part of a batch is accepted, or free places to run or in the queue are counted wrongly."""
    scheduler = Scheduler(engine, max_running=1, max_waiting=2)
    first, second, third, fourth = sequences(engine, [request(seed) for seed in range(4)], gen_length=16)
    with pytest.raises(QueueFull, match="4 requests came, 0 wait already, and the queue holds 2"):
        scheduler.add(first, second, third, fourth)
    assert not scheduler.busy
    scheduler.add(first, second, third)
    for _ in range(2):
        with pytest.raises(QueueFull, match="1 request came"):
            scheduler.add(fourth)
        members(scheduler)
    scheduler.cancel(second)
    scheduler.add(fourth)
    while scheduler.busy:
        members(scheduler)
    assert [s.finished for s in (first, second, third, fourth)] == [True, False, True, True]
