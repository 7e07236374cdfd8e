"""The proposal of a token and its score: greedy, tempered, filtered, ordered, banned."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpad.models.step import predict
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.generate import generate
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sampler import Choice, choose
from dpad.runtime.engines.base import Engine, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

VOCAB = 9


def outputs_of(logits: NDArray[Any]) -> StepOutputs:
    """What an engine answers for these logits [B, R, V]."""
    logits = logits.astype(np.float32)
    tokens, confidence, odds = (part.numpy() for part in predict(torch.from_numpy(logits)))
    return StepOutputs(tokens, confidence, odds, logits)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """In float64, over the last axis."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def logits_of(seed: int, batch: int = 2, rows: int = 5, scale: float = 2.0) -> NDArray[np.float32]:
    """Random logits [B, R, VOCAB]."""
    return (scale * np.random.default_rng(seed).standard_normal((batch, rows, VOCAB))).astype(np.float32)


def draw(logits: NDArray[Any], seeds: list[int], *, tempered: bool = False, **options: Any) -> Choice:
    """One proposal at temperature 1, or another."""
    chosen = GenerationOptions(**({"temperature": 1.0} | options))
    return choose(outputs_of(logits), chosen, [np.random.default_rng(seed) for seed in seeds], tempered=tempered)


@given(st.integers(0, 2**31), st.floats(0.1, 30))
def test_greedy_is_the_argmax_and_its_probability(seed: int, scale: float) -> None:
    """Fails if the token, or the probability rebuilt from the odds against it, is another."""
    logits = logits_of(seed, scale=scale)
    choice = choose(outputs_of(logits), GenerationOptions(), [])
    probabilities = softmax(logits)
    assert choice.tokens.tolist() == logits.argmax(axis=-1).tolist()
    np.testing.assert_allclose(choice.confidence, probabilities.max(axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(choice.scores, choice.confidence)


def test_near_certain_tokens_keep_their_order() -> None:
    """Fails if confidences that float32 rounds to 1 tie, and positions decide the order instead."""
    logits = np.zeros((1, 3, VOCAB))
    logits[0, :, 0] = [20.0, 22.0, 21.0]
    outputs = outputs_of(logits)
    assert (outputs.confidence == 1.0).any()
    assert np.argsort(-choose(outputs, GenerationOptions(), []).scores[0]).tolist() == [1, 2, 0]


@given(st.integers(0, 2**31))
def test_orders_of_entropy_and_margin(seed: int) -> None:
    """Fails if entropy is not least first, or the margin is not between the two best."""
    logits = logits_of(seed)
    probabilities = softmax(logits)
    best = np.sort(probabilities, axis=-1)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=-1)
    for decoder, wanted in (("entropy", -entropy), ("margin", best[..., -1] - best[..., -2])):
        choice = choose(outputs_of(logits), GenerationOptions(decoder=decoder), [])
        np.testing.assert_allclose(choice.scores, wanted, atol=1e-7)
        np.testing.assert_allclose(choice.confidence, best[..., -1], rtol=1e-6)
        assert choice.tokens.tolist() == logits.argmax(axis=-1).tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_frequencies_are_the_tempered_softmax(temperature: float) -> None:
    """Fails if a draw is not from the softmax of logits over temperature, or its confidence not from its own."""
    rows = 40_000
    logits = np.repeat(logits_of(3, 1, 1), rows, axis=1)
    choice = draw(logits, [11], temperature=temperature)
    frequency = np.bincount(choice.tokens[0], minlength=VOCAB) / rows
    expected = softmax(logits[0, 0] / temperature)
    assert (np.abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / rows) + 1e-4).all()
    own = softmax(logits[0, 0])
    np.testing.assert_allclose(choice.confidence[0], own[choice.tokens[0]], rtol=1e-6)


def allowed(logits: NDArray[Any], top_k: int | None, top_p: float | None, temperature: float) -> set[int]:
    """Tokens that may be drawn from one row, filtered the plain way: the nucleus is of the whole row, as in Dream."""
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    probabilities, total, kept = softmax(logits.astype(np.float64) / (temperature or 1.0)), 0.0, []
    for token in order[:top_k]:
        kept.append(token)
        total += probabilities[token]
        if top_p is not None and total >= top_p:
            break
    return set(kept)


@given(
    seed=st.integers(0, 2**31),
    top_k=st.none() | st.integers(1, VOCAB + 3),
    top_p=st.none() | st.floats(0.05, 0.95),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_filters(seed: int, top_k: int | None, top_p: float | None, temperature: float) -> None:
    """Fails if a filtered token is drawn, or if an allowed one never is."""
    row = logits_of(seed, 1, 1, scale=1.0)
    drawn = draw(np.repeat(row, 1500, axis=1), [seed], top_k=top_k, top_p=top_p, temperature=temperature)
    may = allowed(row[0, 0], top_k, top_p, temperature)
    assert set(drawn.tokens[0].tolist()) <= may
    own = softmax(row[0, 0] / temperature)
    likely = {token for token in may if own[token] / sum(own[t] for t in may) > 0.01}
    assert likely <= set(drawn.tokens[0].tolist())


@given(
    seed=st.integers(0, 2**31),
    decoder=st.sampled_from(["threshold", "entropy", "margin"]),
    filters=st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.7}]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_dreams_confidence_is_of_the_distribution_drawn_from(
    seed: int, decoder: str, filters: dict[str, Any], temperature: float
) -> None:
    """Fails if where the authors temper and filter before they take a probability, an entropy or a margin, we do not.

    The same tokens are drawn either way.
    """
    assume(temperature or filters)
    logits = logits_of(seed, 1)
    choice = draw(logits, [seed], tempered=True, decoder=decoder, temperature=temperature, **filters)
    own = draw(logits, [seed], decoder=decoder, temperature=temperature, **filters)
    assert choice.tokens.tolist() == own.tokens.tolist()
    for row, token in enumerate(choice.tokens[0].tolist()):
        may = allowed(logits[0, row], filters.get("top_k"), filters.get("top_p"), temperature)
        scaled = torch.from_numpy(logits[0, row]).double() / (temperature or 1.0)
        scaled[[other for other in range(VOCAB) if other not in may]] = -torch.inf
        probabilities = scaled.softmax(-1)
        best = probabilities.topk(2).values
        wanted = {
            "threshold": probabilities[token],
            "entropy": (probabilities * (probabilities + 1e-10).log()).sum(),
            "margin": best[0] - best[1],
        }[decoder]
        np.testing.assert_allclose(choice.confidence[0, row], probabilities[token], rtol=1e-6)
        np.testing.assert_allclose(choice.scores[0, row], wanted, atol=1e-9)


class Constant(Engine):
    """Answers every row of every step with the same logits."""

    name, dtype = "constant", "float32"

    def __init__(self, family: str, row: NDArray[Any]) -> None:
        self.contract = StepContract(family, 1, 1, 1, 2, VOCAB, VOCAB - 1, 0, 0, 1, 64, 8, 8)
        self.row = row

    def new_cache(self, batch: int, slots: int) -> None:
        """It keeps nothing."""

    def step(self, inputs: StepInputs, cache: None) -> StepOutputs:
        """The same for every row."""
        return outputs_of(np.broadcast_to(self.row, (*inputs.decode_rows.shape, VOCAB)))


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm"])
def test_each_family_has_its_authors_confidence(family: str) -> None:
    """Fails if the decode loop takes the rule of another family for a drawn token."""
    row = logits_of(9, 1, 1)[0, 0]
    options = GenerationOptions(gen_length=8, block_length=8, cache="none", temperature=0.5)
    event = next(generate(Constant(family, row), [Request((1,))], options))
    wanted = softmax(row if family == "llada" else row / 0.5)[event.tokens]
    np.testing.assert_allclose(event.confidences, wanted, rtol=1e-6)


@pytest.mark.parametrize("steepness,top_k,top_p", [(1, None, 0.9), (40, None, 0.5), (1, 15, None), (1, 700, None)])
def test_filters_of_a_large_vocabulary(steepness: float, top_k: int | None, top_p: float | None) -> None:
    """Fails if the shortcuts for large vocabularies cut a flat distribution short, or keep all of a steep one."""
    logits = np.zeros((1, 1, 5000), dtype=np.float32)
    logits[..., :4000] = steepness * np.linspace(1.0, 0.9, 4000)
    drawn = draw(np.repeat(logits, 300, axis=1), [3], top_k=top_k, top_p=top_p)
    may = allowed(logits[0, 0], top_k, top_p, 1.0)
    assert set(drawn.tokens[0].tolist()) <= may
    assert max(drawn.tokens[0]) > 0.9 * max(may)


def test_each_row_has_its_own_generator() -> None:
    """Fails if a row's draw depends on its place in the batch."""
    logits = np.repeat(logits_of(4, 1, 6), 3, axis=0)
    together = draw(logits, [1, 2, 1])
    assert together.tokens[0].tolist() == together.tokens[2].tolist() != together.tokens[1].tolist()
    assert draw(logits[:1], [2]).tokens[0].tolist() == together.tokens[1].tolist()


@given(st.integers(0, 2**31), st.integers(0, VOCAB - 1), st.sampled_from([0.0, 1.0]))
def test_a_banned_token_is_never_proposed(seed: int, banned: int, temperature: float) -> None:
    """Fails if the ban is lost, or if it changes the probabilities of the others."""
    logits = logits_of(seed, 1, 50)
    options = GenerationOptions(temperature=temperature)
    choice = choose(outputs_of(logits), options, [np.random.default_rng(seed)], banned=banned)
    assert banned not in choice.tokens
    own = np.take_along_axis(softmax(logits), choice.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(choice.confidence, own, rtol=1e-6)
    if temperature == 0:
        others = logits.copy()
        others[..., banned] = -np.inf
        assert choice.tokens.tolist() == others.argmax(axis=-1).tolist()


@pytest.mark.parametrize("options", [{}, {"decoder": "margin"}, {"decoder": "entropy"}, {"temperature": 1.0}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_an_error(options: dict[str, Any], value: float) -> None:
    """Fails if one NaN, or an overflow to infinity, becomes a token of probability 1."""
    logits = logits_of(5, 1, 3)
    logits[0, 1, 4] = value
    with pytest.raises(EngineError, match=r"NaN|inf"):
        choose(outputs_of(logits), GenerationOptions(**options), [np.random.default_rng(0)])


def test_negative_infinity_is_only_impossible() -> None:
    """Fails if a token that the model rules out is taken for broken output."""
    logits = logits_of(6, 1, 3)
    logits[..., 2] = -np.inf
    for options in (
        {},
        {"decoder": "entropy"},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 4},
    ):
        choice = choose(outputs_of(logits), GenerationOptions(**options), [np.random.default_rng(0)])
        assert np.isfinite(choice.scores).all() and 2 not in choice.tokens


def test_missing_logits() -> None:
    """Fails if an engine that forgot the logits is blamed on something else."""
    outputs = outputs_of(logits_of(7))
    bare = StepOutputs(outputs.token_ids, outputs.confidence, outputs.odds_against, None)
    with pytest.raises(EngineError, match="logits"):
        choose(bare, GenerationOptions(temperature=1.0), [np.random.default_rng(0)] * 2)


@pytest.mark.parametrize("temperature", [1e-3])
def test_the_smallest_temperatures_are_greedy(temperature: float) -> None:
    """Fails if logits over a tiny temperature overflow into NaN or into the wrong token."""
    logits = logits_of(8, scale=200)
    for filters in ({}, {"top_k": 3}, {"top_p": 0.9}):
        choice = draw(logits, [1, 2], temperature=temperature, **filters)
        assert choice.tokens.tolist() == logits.argmax(axis=-1).tolist()
