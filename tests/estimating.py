"""Runs bounds of a text's likelihood with a scheduler of its own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.evaluation.likelihood import estimates
from dpad.runtime.decoding.scheduler import run
from dpad.runtime.engines.base import Engine


def bounds(engine: Engine, *arguments: Any, **more: Any) -> NDArray[np.float64]:
    """The bounds [draws], in order; the arguments are those of `estimates` after the contract."""
    drawn = list(estimates(engine.contract, *arguments, **more))
    assert {id(one) for one, _ in run(engine, drawn)} == {id(one) for one in drawn}
    return np.array([one.nats for one in drawn])
