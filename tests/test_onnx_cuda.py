"""ONNX Runtime as a program of `GpuEngine` gives the tokens of its CPU engine, with buffers at fixed addresses.

`host_onnx.py` simulates the GPU. tests/test_engines.py, test_block_causal.py and test_engine_decisions.py compare its
single steps with the reference.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from checkpoints import FAMILIES, MASK, OPENERS
from decoding import Decoded, run
from host_cuda import HostDevice
from host_onnx import opened

from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import Gaussian
from dpad.runtime.engines import onnx_session
from dpad.runtime.engines.onnx_cuda import open_onnx_cuda
from dpad.runtime.errors import EngineError, EngineUnavailable

REQUESTS = [
    Request(tuple(np.random.default_rng(seed).integers(2, MASK, length).tolist()), seed=seed)
    for seed, length in ((25, 5), (26, 23), (27, 11))
]


def assert_same(ours: list[Decoded], theirs: list[Decoded]) -> None:
    """Assert equal tokens and passes."""
    assert [(a.tokens, a.nfe, a.committed) for a in ours] == [(b.tokens, b.nfe, b.committed) for b in theirs]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "top_k": 20}], ids=["greedy", "drawn"])
def test_decodes_as_on_a_cpu(engine_of: Any, family: str, cache: str, sampled: dict[str, Any]) -> None:
    """Fails if a bucket, a binding, a kept row or `decide` changes a token or its pass."""
    schedule = Gaussian(k=3, scale=2, window=32)
    options = GenerationOptions(
        gen_length=48, block_length=16, cache=cache, threshold=0.6, schedule=schedule, **sampled
    )
    ours, theirs = engine_of("onnxruntime-cuda", family), engine_of("onnxruntime", family)
    assert_same(run(ours, REQUESTS, options), run(theirs, REQUESTS, options))


def test_a_step_is_one_upload_and_one_download(make_bundle: Any) -> None:
    """Fails if indices are uploaded one by one, new rows are copied through the host, or each layer makes a copy."""
    with opened(make_bundle("llada")) as engine:
        options = GenerationOptions(gen_length=48, block_length=16, cache="dual", decoder="fixed", steps=12)
        run(engine, REQUESTS[:1], options)
        engine.hardware.counts.clear()
        [decoded] = run(engine, REQUESTS[:1], options)
        counts = engine.hardware.counts
        assert (counts["upload"], counts["download"], counts["alloc"]) == (decoded.nfe, decoded.nfe, 0)
        assert 0 < counts["copy_2d"] < decoded.nfe


def test_queries_and_keys_suit_its_kernel(make_bundle: Any) -> None:
    """Fails if Q + K is not a multiple of 4, which the memory-efficient attention kernel needs, or exceeds a limit."""
    with opened(make_bundle("dream")) as engine:
        sizes = range(1, engine.contract.max_length + 1)
        for axis in "QK":
            padded = [engine.padded(axis, size) for size in sizes]
            assert all(have >= size and have % 4 == 0 for size, have in zip(sizes, padded))
            assert padded[-1] == sizes[-1]


def test_a_step_that_fails_leaves_the_engine_usable(make_bundle: Any, monkeypatch: Any) -> None:
    """Fails if an error of ONNX Runtime is not typed, or operations queued for that step affect the next one."""
    options = GenerationOptions(gen_length=32, block_length=16, cache="dual", decoder="fixed", steps=8)
    with opened(make_bundle("llada")) as engine:
        [before] = run(engine, REQUESTS[:1], options)
        with monkeypatch.context() as patch:
            patch.setattr(ort.InferenceSession, "run_with_iobinding", lambda *_: 1 / 0)
            with pytest.raises(EngineError, match="ONNX Runtime failed in a step: division by zero"):
                run(engine, REQUESTS[:1], options)
        assert_same(run(engine, REQUESTS[:1], options), [before])
    with pytest.raises(EngineError, match="is closed"):
        run(engine, REQUESTS[:1], options)


def test_a_provider_that_does_not_start_is_an_error(make_bundle: Any, monkeypatch: Any) -> None:
    """Fails if the engine "onnxruntime-cuda" runs on the CPU when a CUDA library is missing."""
    path: Path = make_bundle("llada") / "step.onnx"
    contract, device, real = OPENERS["onnxruntime"](make_bundle("llada")).contract, HostDevice(), ort.InferenceSession
    monkeypatch.setattr(onnx_session, "require_provider", lambda provider: None)
    monkeypatch.setattr(onnx_session.ort, "InferenceSession", lambda p, options, **named: real(p, options))
    with pytest.raises(EngineUnavailable, match="could not start CUDAExecutionProvider"):
        open_onnx_cuda(path, contract, "float32", device)
    assert device.closed
