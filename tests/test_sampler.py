"""Decisions of the loop from logits: tokens, order of commits, and confidences."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpad.models.decide import decide
from dpad.models.step import predict
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.slots import Slots
from dpad.runtime.engines.step import Decisions, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

VOCAB, GEN = 9, 8
MASK = VOCAB - 1


class Constant(Engine):
    """Returns the same logits [GEN, VOCAB] in every pass, for any canvas after a prompt of one token."""

    name, dtype = "constant", "float32"

    def __init__(self, logits: NDArray[Any], family: str = "llada") -> None:
        super().__init__()
        self.contract = StepContract(family, 1, 1, 1, 2, VOCAB, MASK, 0, 0, 4, 64, 8, 8, family != "llada")
        self.slots, self.logits = Slots(65), torch.from_numpy(logits.astype(np.float32))

    def _step(self, inputs: StepInputs) -> StepOutputs:
        positions = np.take_along_axis(inputs.gather_indices, inputs.decode_rows, axis=1)
        logits = self.logits[positions - 1]
        tokens, odds, *_ = (part.numpy() for part in predict(logits))
        decisions = None
        if inputs.sampling is not None:
            given = (torch.from_numpy(array) for array in vars(inputs.sampling).values())
            made = decide(logits, *given, tempers=self.contract.tempers_confidence)
            decisions = Decisions(*(part.numpy() for part in made))
        return StepOutputs(tokens, odds, decisions)


def events_of(logits: NDArray[Any], family: str = "llada", **options: Any) -> list[StepEvent]:
    """The events of a decode of one block, by default with one token per pass."""
    chosen = GenerationOptions(
        **({"gen_length": GEN, "block_length": GEN, "cache": "none", "decoder": "fixed"} | options)
    )
    return list(decode(Constant(logits, family), [Request((1,))], chosen))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax in float64 over the last axis."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def logits_of(seed: int, scale: float = 2.0) -> NDArray[np.float32]:
    """Random logits [GEN, VOCAB] that never prefer the mask."""
    logits = (scale * np.random.default_rng(seed).standard_normal((GEN, VOCAB))).astype(np.float32)
    logits[:, MASK] = logits.min() - 5
    return logits


def committed(events: list[StepEvent]) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Rows in the order of commits, with their tokens and confidences."""
    rows = [int(position) - 1 for event in events for position in event.positions]
    tokens = [int(token) for event in events for token in event.tokens]
    return rows, tokens, np.concatenate([event.confidences for event in events])


@given(st.integers(0, 2**31), st.floats(0.1, 30))
def test_greedy_is_the_argmax_and_its_probability(seed: int, scale: float) -> None:
    """Fails if the token, or its probability computed from the odds, is wrong."""
    logits = logits_of(seed, scale)
    rows, tokens, confidence = committed(events_of(logits))
    assert tokens == logits.argmax(axis=-1)[rows].tolist()
    np.testing.assert_allclose(confidence, softmax(logits).max(axis=-1)[rows], rtol=1e-6)
    assert (np.diff(confidence) <= 0).all()


@pytest.mark.parametrize("options", [{}, {"decoder": "margin"}, {"decoder": "entropy"}, {"temperature": 1e-3}])
def test_near_certain_tokens_keep_their_order(options: dict[str, Any]) -> None:
    """Fails if tokens whose confidence float32 rounds to 1 are committed by position instead of confidence."""
    logits = np.zeros((GEN, VOCAB))
    logits[:, 0] = [20.0, 23.0, 21.0, 22.0, 20.5, 22.5, 21.5, 19.5]
    assert (softmax(logits)[:, 0].astype(np.float32) == 1).sum() > 2
    assert committed(events_of(logits, **options))[0] == np.argsort(-logits[:, 0]).tolist()


@given(st.integers(0, 2**31), st.sampled_from(["llada", "dream"]))
def test_orders_of_entropy_and_margin(seed: int, family: str) -> None:
    """Fails if the order is not by least entropy or largest margin of the best two, or a token is wrong."""
    logits = logits_of(seed)
    probabilities = softmax(logits)
    best = np.sort(probabilities, axis=-1)
    entropy = (probabilities * np.log(probabilities)).sum(axis=-1)
    for decoder, wanted in (("entropy", entropy), ("margin", best[:, -1] - best[:, -2])):
        rows, tokens, confidence = committed(events_of(logits, family, decoder=decoder))
        assert (np.diff(wanted[rows]) <= 1e-5).all()
        assert tokens == logits.argmax(axis=-1)[rows].tolist()
        np.testing.assert_allclose(confidence, best[rows, -1], rtol=1e-6)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_each_family_has_its_authors_confidence(family: str, filters: dict[str, Any]) -> None:
    """Fails if a drawn token has another family's confidence, or a filtered token is drawn.

    LLaDA's confidence is the probability under the model's own distribution; Dream's is that under the tempered and
    filtered one.
    """
    logits = logits_of(9, scale=0.7)
    rows, tokens, confidence = committed(events_of(logits, family, temperature=0.5, seed=5, **filters))
    assert filters or tokens != logits.argmax(axis=-1)[rows].tolist()
    tempered = softmax(logits / 0.5)
    for row, token, found in zip(rows, tokens, confidence, strict=True):
        order = np.argsort(-tempered[row])
        ahead = np.cumsum(tempered[row][order]) - tempered[row][order]
        kept = order[(np.arange(VOCAB) < filters.get("top_k", VOCAB)) & (ahead < filters.get("top_p", 1.0))]
        assert token in kept
        shaped = tempered[row, token] / tempered[row, kept].sum()
        assert found == pytest.approx(softmax(logits)[row, token] if family == "llada" else shaped, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"decoder": "margin"}, {"decoder": "entropy"}, {"temperature": 1.0}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_an_error(options: dict[str, Any], value: float) -> None:
    """Fails if a NaN or an infinite logit becomes a token with probability 1."""
    logits = logits_of(5)
    logits[1, 4] = value
    with pytest.raises(EngineError, match=r"NaN or infinite"):
        events_of(logits, **options)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("options", [{}, {"decoder": "entropy"}, {"temperature": 1.0, "top_p": 0.9, "top_k": 4}])
def test_negative_infinity_is_only_impossible(family: str, options: dict[str, Any]) -> None:
    """Fails if a logit of -inf is an error, or its token is drawn."""
    logits = logits_of(6)
    logits[:, 2] = -np.inf
    assert 2 not in committed(events_of(logits, family, **options))[1]


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_smallest_temperatures_are_greedy(filters: dict[str, Any]) -> None:
    """Fails if dividing by a tiny temperature overflows to NaN or gives a wrong token."""
    logits = logits_of(8, scale=200)
    rows, tokens, _ = committed(events_of(logits, temperature=1e-3, **filters))
    assert tokens == logits.argmax(axis=-1)[rows].tolist()


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_is_banned_only_where_nothing_else_is_left(family: str, temperature: float) -> None:
    """Fails if banning the mask changes another token's probability, or the mask is predicted again."""
    logits = logits_of(4)
    logits[:, MASK] = logits.max(axis=-1) + 30
    events = events_of(logits, family, temperature=temperature, seed=3)
    assert [len(event.tokens) for event in events] == [0, 1] * GEN
    rows, tokens, confidence = committed(events)
    assert MASK not in tokens
    if temperature == 0:
        assert tokens == logits[:, :MASK].argmax(axis=-1)[rows].tolist()
        np.testing.assert_allclose(confidence, softmax(logits)[rows, tokens], rtol=1e-5)
