"""Admission to a server: which requests it accepts, and its Retry-After for the others."""

from contextlib import ExitStack
from typing import Any

import pytest

from dpad.serving import admission
from dpad.serving.admission import Admission
from dpad.serving.errors import ApiError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The simulated time."""
    now = [100.0]
    monkeypatch.setattr(admission, "perf_counter", lambda: now[0])
    return now


def refused(room: Admission, count: int) -> ApiError:
    with pytest.raises(ApiError) as error, room.hold(count):
        pass
    return error.value


def test_room_is_counted_in_sequences() -> None:
    """Fails if a request with several answers takes only one place, or if a failed request keeps its place."""
    room = Admission(4)
    with room.hold(3):
        assert refused(room, 2).status == 429
        with room.hold(1):
            assert refused(room, 1).code == "queue_full"
        with pytest.raises(ZeroDivisionError), room.hold(1):
            raise ZeroDivisionError
        assert room.inside == 3
    assert room.inside == 0
    assert (refused(room, 5).status, refused(room, 5).code) == (400, "too_many")


@pytest.mark.parametrize("seconds, inside, wanted", [(2.0, 3, 6), (0.01, 3, 1), (50.0, 3, 60)])
def test_the_wait_is_the_pace_of_those_who_left(clock: list[float], seconds: float, inside: int, wanted: int) -> None:
    """Fails if Retry-After does not follow how fast requests end, or says 0, or an hour."""
    room = Admission(3)
    with ExitStack() as stack:
        stack.enter_context(room.hold(2))
        for _ in range(100):
            with room.hold(1):
                clock[0] += seconds
        stack.enter_context(room.hold(inside - 2))
        assert refused(room, 1).headers() == {"retry-after": str(wanted)}


def test_idle_time_is_no_pace(clock: list[float]) -> None:
    """Fails if idle time counts as the duration of a request."""
    room = Admission(1)
    with room.hold(1):
        clock[0] += 3
    clock[0] += 3600
    with room.hold(1):
        clock[0] += 3
    with room.hold(1):
        assert room.retry_after() == 3


def test_a_server_that_ends_lets_nobody_in() -> None:
    """Fails if a server that is draining accepts requests, or refuses them because it is full."""
    room: Any = Admission(4)
    with room.hold(1):
        room.draining = True
        error = refused(room, 1)
        assert (error.status, error.code) == (503, "draining") and error.headers()
