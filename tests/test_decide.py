"""`decide`, eager and in ONNX: drawn, filtered and banned tokens, and their confidences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from cuda_kernels import lacking
from hypothesis import given
from hypothesis import strategies as st
from likely import decided, filtered
from numpy.typing import NDArray

from dpad.export.step.trace import check_onnx, quiet
from dpad.export.step.trace_decide import trace_decide
from dpad.models.decide import decide
from dpad.models.step import predict
from dpad.plugins.onnx_face import OPSET
from dpad.runtime.contract import StepContract

VOCABULARY = 130  # more tokens than `decide` ranks
Asked = tuple[NDArray[Any], ...]
Decide = Callable[..., list[NDArray[Any]]]


def contract_of(vocabulary: int, tempers: bool) -> StepContract:
    """A contract with this vocabulary, whose other values do not matter."""
    return StepContract("llada", 1, 1, 1, 2, vocabulary, vocabulary - 1, 0, 0, 4, 64, 8, 8, tempers)


def eager(*arrays: NDArray[Any], tempers: bool) -> list[NDArray[Any]]:
    """The outputs of `decide` in eager PyTorch."""
    return [part.numpy() for part in decide(*map(torch.from_numpy, arrays), tempers=tempers)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Decide:
    """`decide` in ONNX Runtime, traced for each rule of confidence."""
    sessions = {}
    for tempers in (False, True):
        path = tmp_path_factory.mktemp("decide") / "decide.onnx"
        onnx_ir.save(trace_decide(contract_of(VOCABULARY, tempers)), path)
        check_onnx(path, ())
        sessions[tempers] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*arrays: NDArray[Any], tempers: bool) -> list[NDArray[Any]]:
        names = [spec.name for spec in contract_of(VOCABULARY, tempers).decide_inputs()]
        answer: list[NDArray[Any]] = sessions[tempers].run(None, dict(zip(names, arrays, strict=True)))
        return answer

    return run


def asked(rng: np.random.Generator, vocabulary: int) -> Asked:
    """Logits of one to three sequences, flat, peaked or with ties, and random sampling options of each."""
    batch, rows = rng.integers(1, 4), rng.integers(1, 6)
    logits = rng.choice([0.3, 1, 4, 30]) * rng.standard_normal((batch, rows, vocabulary))
    logits[..., rng.integers(vocabulary)] += rng.choice([0, 15, 25])
    if rng.random() < 0.4:
        logits = logits.round()
    return (
        logits.astype(np.float32),
        rng.random((batch, rows), dtype=np.float32),
        rng.choice(np.array([0, 0.02, 0.5, 1, 3], np.float32), batch),
        rng.choice([0, 1, 3, vocabulary // 2, 64, 65, vocabulary - 1, vocabulary, 2 * vocabulary], batch),
        rng.choice(np.array([1, 0.05, 0.5, 0.9, 0.999], np.float32), batch),
        np.where(rng.random(batch) < 0.3, logits[:, 0].argmax(axis=-1), rng.choice([-1, 5], batch)),
    )


@pytest.mark.parametrize("tempers", [False, True])
@pytest.mark.parametrize(("where", "vocabulary"), [("eager", VOCABULARY), ("eager", 31), ("onnx", VOCABULARY)])
def test_decisions_are_those_of_float64(traced: Decide, where: str, vocabulary: int, tempers: bool) -> None:
    """Fails if a token, odds, entropy or margin differs from the reference in float64 with a sort."""
    rng = np.random.default_rng(vocabulary)
    for _ in range(60):
        arrays = asked(rng, vocabulary)
        answers = (eager if where == "eager" else traced)(*arrays, tempers=tempers)
        for row in np.ndindex(arrays[1].shape):
            wanted = decided(arrays[0][row], float(arrays[1][row]), *(a[row[0]] for a in arrays[2:]), tempers=tempers)
            token, *numbers = (answer[row] for answer in answers)
            assert token == wanted.token
            np.testing.assert_allclose(numbers, wanted[1:4], rtol=3e-5, atol=1e-30)


def test_filters_keep_exactly_what_they_should(traced: Decide) -> None:
    """Fails if a filter keeps one token more or less, also for flat rows, where more tokens stay than are ranked."""
    rng, vocabulary = np.random.default_rng(1), VOCABULARY
    draws = ((np.arange(3000, dtype=np.float32) + 0.5) / 3000)[None]
    for top_k, top_p, scale in [(3, 1.0, 1.0), (0, 0.8, 1.0), (100, 1.0, 0.1), (0, 0.9, 0.1), (90, 0.7, 0.1)]:
        row = (scale * rng.standard_normal(vocabulary)).astype(np.float32)
        logits, one = np.broadcast_to(row, (1, 3000, vocabulary)).copy(), np.ones(1, np.float32)
        asks: Asked = (one, np.array([top_k]), np.float32(top_p) * one, np.array([-1]))
        kept = np.flatnonzero(filtered(np.exp(row.astype(np.float64) - row.max()), top_k, float(np.float32(top_p))))
        for run in (eager, traced):
            assert np.unique(run(logits, draws, *asks, tempers=True)[0]).tolist() == kept.tolist()


@given(st.integers(0, 2**31), st.sampled_from(["threshold", "entropy", "margin"]))
def test_near_certain_rows_keep_their_order(seed: int, decoder: str) -> None:
    """Fails if rows with probabilities near 1 tie in float32, or have another order than in float64."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((1, 8, 40)).astype(np.float32)
    logits[..., 7] += 21 + 4 * rng.random((1, 8), dtype=np.float32)
    none: Asked = np.zeros(1, np.float32), np.array([0]), np.ones(1, np.float32), np.array([-1])
    answers = eager(logits, np.zeros((1, 8), np.float32), *none, tempers=True)
    place = {"threshold": 1, "entropy": 2, "margin": 3}[decoder]
    wanted = np.array([decided(row, tempers=True)[place] for row in logits[0]])
    assert (1 / (1 + answers[1]) == 1).sum() > 2
    assert np.argsort(answers[place][0]).tolist() == np.argsort(wanted).tolist()


@pytest.mark.parametrize("tempers", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_frequencies_are_the_tempered_softmax(temperature: float, tempers: bool) -> None:
    """Fails if a draw is not from the softmax of logits over temperature."""
    rows, vocabulary = 40_000, 12
    row = 2 * np.random.default_rng(3).standard_normal(vocabulary).astype(np.float32)
    uniform = np.random.default_rng(4).random((1, rows), dtype=np.float32)
    asks: Asked = np.full(1, temperature, np.float32), np.array([0]), np.ones(1, np.float32), np.array([-1])
    logits = np.broadcast_to(row, (1, rows, vocabulary)).copy()
    tokens = eager(logits, uniform, *asks, tempers=tempers)[0]
    expected = np.exp(row.astype(np.float64) / temperature)
    expected /= expected.sum()
    frequency = np.bincount(tokens[0], minlength=vocabulary) / rows
    assert (np.abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / rows) + 1e-4).all()


@pytest.mark.parametrize("where", ["eager", "onnx"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_show(traced: Decide, where: str, value: float) -> None:
    """Fails if a NaN or infinite logit gives finite odds, or if a logit of -inf is an error or is chosen."""
    run = eager if where == "eager" else traced
    for tempers in (False, True):
        for temperature, top_k in ((0.0, 0), (1.0, 0), (1.0, 3), (0.0, 3)):
            logits = np.random.default_rng(5).standard_normal((1, 3, VOCABULARY)).astype(np.float32)
            asks: Asked = np.full(1, temperature, np.float32), np.array([top_k]), np.ones(1, np.float32), np.array([-1])
            logits[..., 2] = -np.inf
            uniform = np.full((1, 3), 0.7, np.float32)
            token, *numbers = run(logits, uniform, *asks, tempers=tempers)
            assert np.isfinite(numbers).all() and 2 not in token
            logits[0, 1, 4] = value
            odds = run(logits, uniform, *asks, tempers=tempers)[1][0]
            assert np.isnan(odds).tolist() == [False, True, False]


class Greedy(torch.nn.Module):
    """`predict` as a module."""

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call `predict` on logits [B, R, V]."""
        return predict(logits)


def test_all_of_it_runs_on_a_gpu() -> None:
    """Fails if an operator has no kernel in ONNX Runtime's CUDA provider, so that logits would be copied."""
    row = torch.export.Dim("R", min=1)
    with quiet():
        greedy = torch.onnx.export(
            Greedy().eval(), (torch.zeros(2, 9, 130),), opset_version=OPSET, dynamic_shapes=({1: row},), verbose=False
        )
    assert greedy is not None
    for model in (trace_decide(contract_of(VOCABULARY, True)), greedy.model):
        assert not lacking(onnx_ir.to_proto(model))


def test_it_compiles_with_tensorrt_rtx(tmp_path: Path) -> None:
    """Fails if TensorRT-RTX cannot build the program."""
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    from dpad.export.engines.plan import build_plan
    from dpad.export.progress import Progress

    contract = contract_of(VOCABULARY, True)
    onnx_ir.save(trace_decide(contract), tmp_path / "decide.onnx")
    path = tmp_path / "decide.onnx"
    assert build_plan(tensorrt_rtx, path, contract, "float32", "8.9", Progress(), decides=True).data.nbytes
