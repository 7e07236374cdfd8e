"""The Triton kernel inside a model: compares every step of a decode with the definition, in 16 bit."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, torch_engine
from interpreter import GPU

from dpad.models.torch_engine import TorchEngine, open_torch_engine
from dpad.plugins import attention
from dpad.plugins.launch import attend_rows
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineUnavailable


class Recorder(TorchEngine):
    """Records the inputs of every step."""

    recorded: list[StepInputs]

    def _step(self, inputs: StepInputs) -> StepOutputs:
        self.recorded.append(replace(deepcopy(inputs), want_logits=True))
        return super()._step(inputs)


def logits_of(engine: TorchEngine, steps: list[StepInputs]) -> list[np.ndarray[Any, Any]]:
    """The logits of every step, with an initially empty pool."""
    for tensor in engine.pool:
        tensor.zero_()
    return [TorchEngine._step(engine, inputs).logits for inputs in steps]  # type: ignore[misc]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_a_decode(make_bundle: Any, monkeypatch: pytest.MonkeyPatch, family: str, cache: str) -> None:
    """Fails if the kernel, called by a model, differs from the definition in any cache mode."""
    engine = torch_engine(make_bundle(family, "float16"), Recorder)
    engine.recorded = []
    options = GenerationOptions(
        gen_length=32, block_length=16, cache=cache, steps=8, decoder="fixed", early_termination=False
    )
    requests = [Request((3, 4, 5, 6, 7)), Request((9, 8))]
    list(decode(engine, requests, options))
    want = logits_of(engine, engine.recorded)
    calls: list[tuple[int, ...]] = []

    def kernel(*arguments: Any) -> torch.Tensor:
        calls.append(tuple(arguments[0].shape))
        return attend_rows(*arguments)

    monkeypatch.setattr(attention, "definition", kernel)
    ours = logits_of(engine, engine.recorded)
    assert len(calls) == engine.contract.layers * len(want) > 0
    for mine, theirs in zip(ours, want):
        assert np.abs(mine - theirs).mean() < 5e-3 * np.abs(theirs).mean()


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_the_eager_engine_on_a_gpu_says_when_there_is_none(tmp_path: Path) -> None:
    """Fails if the error is torch's own."""
    with pytest.raises(EngineUnavailable, match="no CUDA device here; use engine eager"):
        open_torch_engine(Bundle(tmp_path, None), device="cuda")  # type: ignore[arg-type]
