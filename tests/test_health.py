"""Readiness of a server: its engine is probed, and a hang is distinguished from long work."""

import asyncio
import time
from typing import Any

import pytest
from passes import OPTIONS, Caller, Passes, passing, request, settle, until

from dpad.runtime.model import DiffusionModel
from dpad.serving import health
from dpad.serving.admission import Admission
from dpad.serving.health import FRESH, Health
from dpad.serving.settings import PATIENCE


@pytest.fixture
def engine(make_bundle: Any) -> Any:
    """A recording engine in torch."""
    return passing(make_bundle("llada"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`later(5)` advances the health check's clock by five seconds."""
    passed = [0.0]
    monkeypatch.setattr(health, "monotonic", lambda: time.monotonic() + passed[0])
    return lambda seconds: passed.__setitem__(0, passed[0] + seconds)


def ask(health: Health) -> str:
    return asyncio.run(health.obstacle())


def test_a_decode_of_one_pass_is_the_proof(model: DiffusionModel, engine: Passes, later: Any) -> None:
    """Fails if probes accumulate, a success counts forever, or a failing engine is reported as ready."""
    own = Health(model, Admission(4))
    assert ask(own) == "" and len(engine.passes) == 1
    assert ask(own) == "" and len(engine.passes) == 1
    later(FRESH)
    assert ask(own) == "" and len(engine.passes) == 2
    later(FRESH)
    engine.before = lambda inputs: 1 / 0
    assert ask(own) == "the engine decodes nothing: EngineError"
    engine.before = None
    assert ask(own) == ""


def test_an_engine_that_hangs_is_not_ready(model: DiffusionModel, engine: Passes, later: Any) -> None:
    """Fails if a pass that never ends counts as work, or long work counts as a hang."""
    own = Health(model, Admission(4))
    engine.hold()
    running = Caller(lambda: model.generate(request(), **OPTIONS))
    until(lambda: model.status.running)
    assert ask(own) == ""
    later(PATIENCE / 2)
    assert ask(own) == ""
    later(PATIENCE)
    assert "no pass has ended in" in ask(own)
    engine.gate.set()
    assert running.result().nfe == 32
    assert ask(own) == ""
    settle(engine)


def test_a_server_that_ends_is_not_ready(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a server that refuses requests while draining is reported as ready."""
    room: Any = Admission(4)
    room.draining = True
    assert ask(Health(model, room)) == "this server is ending" and not engine.passes
