"""Decisions of engines beyond the likeliest token, which `decide` takes from the step's logits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, MASK, OPENERS

from dpad.models.decide import decide
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.step import Sampling, StepInputs
from dpad.runtime.errors import EngineError


def step(sequences: int) -> StepInputs:
    """A step with 12 random tokens for each sequence, all of which are decoded."""
    canvas = np.random.default_rng(0).integers(2, MASK, (sequences, 12))
    rows = np.tile(np.arange(12), (sequences, 1))
    return StepInputs(canvas, rows, np.empty((sequences, 0), np.int64), rows, want_logits=True)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "onnxruntime-cuda", "tensorrt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decisions_are_those_of_the_definition(engine_of: Any, engine: str, family: str) -> None:
    """Fails if `decide` gets other logits, or one sequence's options affect another."""
    opened: Engine = engine_of(engine, family)
    rng = np.random.default_rng(4)
    plain = step(3)
    sampling = Sampling(
        rng.random((3, 12), np.float32),
        np.array([0, 0.8, 1.5], np.float32),
        np.array([0, 5, 0]),
        np.array([1, 1, 0.9], np.float32),
        np.array([-1, 7, -1]),
    )
    outputs = opened.step(replace(plain, sampling=sampling))
    asked = (torch.from_numpy(array) for array in (outputs.logits, *vars(sampling).values()))
    wanted = decide(*asked, tempers=opened.contract.tempers_confidence)
    quiet = opened.step(replace(plain, sampling=sampling, want_logits=False))
    assert quiet.logits is None and opened.step(plain).decisions is None
    for made in (outputs.decisions, quiet.decisions):
        for have, want in zip(vars(made).values(), wanted):
            np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-6)
    drawn = np.asarray(outputs.decisions.token_ids)
    assert (drawn[0] == outputs.token_ids[0]).all() and (drawn[1:] != outputs.token_ids[1:]).any()


def test_a_step_without_the_second_program_says_so(make_bundle: Any) -> None:
    """Fails if sampling without decide.onnx does not raise an error with the way out."""
    contract = OPENERS["torch"](make_bundle("llada")).contract
    ones, rows = np.ones(1, np.float32), np.zeros((1, 12), np.float32)
    sampling = Sampling(rows, ones, ones.astype(np.int64), ones, ones.astype(np.int64))
    with OnnxEngine(make_bundle("llada") / "step.onnx", contract, "float32") as engine:
        plain = step(1)
        with pytest.raises(EngineError, match=r"without decide.onnx, .* export the bundle again"):
            engine.step(replace(plain, sampling=sampling))
        engine.step(plain)
