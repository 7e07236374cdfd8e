"""A table of requests, each sent by OpenAI's own client in four ways, against what the runtime writes.

The ways are: whole or streamed, by the synchronous or by the asynchronous client. Every case runs on both endpoints.
"""

import asyncio
from collections.abc import AsyncIterable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from servers import Served

import dpad

PROMPT = "w8 w13 w12"  # to which the random model writes different words, with a chat template and without
OWN: dict[str, Any] = {"decoder": "fixed", "block_length": 8, "schedule": "none"}
OPTIONS: dict[str, Any] = {"decoder": "fixed", "block_length": 8, "schedule": dpad.Full()}
WAYS = (
    "whole",
    pytest.param("streamed", marks=pytest.mark.slow),
    pytest.param("async", marks=pytest.mark.slow),
    "async streamed",
)
ENDPOINTS = ("completions", "chat")


@dataclass(frozen=True)
class Case:
    """Fields of a request, and the options of the runtime that mean the same."""

    fields: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = 24  # on the canvas
    most: int | None = None  # in the answer, where it is cut
    stop: bool = False  # the answer ends before the fourth word
    answers: int = 1


ANSWERED = {
    "plain": Case({}),
    "one token": Case({"max_tokens": 1}, tokens=8, most=1),
    "cut within a block": Case({"max_tokens": 5}, tokens=8, most=5),
    "greedy by name": Case({"temperature": 0, "top_p": 1}),
    "drawn": Case({"temperature": 0.8, "seed": 4}, {"temperature": 0.8, "seed": 4}),
    "drawn from the likeliest": Case(
        {"temperature": 1.0, "top_p": 0.5, "seed": 9}, {"temperature": 1.0, "top_p": 0.5, "seed": 9}
    ),
    "several": Case({"n": 3, "temperature": 1.0, "seed": 7}, {"temperature": 1.0, "seed": 7}, answers=3),
    "stop": Case({}, stop=True),
    "logprobs": Case({"logprobs": True}),
    "user": Case({"user": "somebody"}),
    "penalties of nothing": Case({"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}),
    "cache dual": Case({"extra_body": {**OWN, "cache": "dual"}}, {"cache": "dual"}),
    "decoder threshold": Case(
        {"extra_body": {**OWN, "decoder": "threshold", "threshold": 0.4}}, {"decoder": "threshold", "threshold": 0.4}
    ),
    "schedule": Case(
        {"extra_body": {**OWN, "schedule": {"gaussian": {"k": 3, "window": 8}}}, "seed": 3},
        {"schedule": dpad.Gaussian(k=3, window=8), "seed": 3},
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str | None]] = {
    "another model": ({"model": "gpt-4"}, openai.NotFoundError, "model"),
    "an unknown field": ({"extra_body": {"zork": 1}}, openai.BadRequestError, "zork"),
    "a negative temperature": ({"temperature": -1}, openai.BadRequestError, "temperature"),
    "no tokens": ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
    "a canvas too long": ({"max_tokens": 10**6}, openai.BadRequestError, None),
    "a penalty": ({"frequency_penalty": 1.5}, openai.BadRequestError, "frequency_penalty"),
    "an unknown decoder": ({"extra_body": {"decoder": "zork"}}, openai.BadRequestError, None),
}


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole, "--name", "random") as server:
        yield server


@pytest.fixture(scope="module")
def model(whole: Path) -> Iterator[dpad.DiffusionModel]:
    with dpad.load(whole, threads=1) as opened:
        yield opened


@dataclass
class Told:
    """What a client was told: texts and reasons by choice, and the usage."""

    texts: dict[int, str]
    reasons: dict[int, str]
    usage: Any
    log: int = 0  # tokens with a logprob


def whole_of(answer: Any) -> Told:
    """An answer that came at once."""
    chat = answer.object == "chat.completion"
    texts = {one.index: one.message.content if chat else one.text for one in answer.choices}
    return Told(texts, {one.index: one.finish_reason for one in answer.choices}, answer.usage, _log(answer.choices))


def folded(parts: Iterable[Any]) -> Told:
    """An answer that came in parts."""
    told = Told({}, {}, None)
    for part in parts:
        for one in part.choices:
            text = one.delta.content if part.object == "chat.completion.chunk" else one.text
            told.texts[one.index] = told.texts.get(one.index, "") + (text or "")
            if one.finish_reason is not None:
                assert one.index not in told.reasons, "a choice ends once"
                told.reasons[one.index] = one.finish_reason
        told.usage, told.log = part.usage or told.usage, told.log + _log(part.choices)
    return told


def _log(choices: Any) -> int:
    """Tokens of which the logprob was told."""
    found = [one.logprobs for one in choices if one.logprobs is not None]
    return sum(len(each.content if hasattr(each, "content") else each.tokens) for each in found)


def ask(served: Served, endpoint: str, way: str, **fields: Any) -> Told:
    """Send a request by one of the `WAYS`."""
    given: dict[str, Any] = {"model": "random", "max_tokens": 24, "extra_body": OWN, **fields}
    given |= {"prompt": PROMPT} if endpoint == "completions" else {"messages": [{"role": "user", "content": PROMPT}]}
    if endpoint == "completions" and given.get("logprobs") is True:
        given["logprobs"] = 1
    if "streamed" in way:
        given |= {"stream": True, "stream_options": {"include_usage": True}}
    if not way.startswith("async"):
        with served.client() as client:
            answer: Any = _door(client, endpoint)(**given)
            return folded(answer) if "streamed" in way else whole_of(answer)

    async def later() -> Told:
        async with served.async_client() as client:
            answer = await _door(client, endpoint)(**given)
            return folded(await _all(answer)) if "streamed" in way else whole_of(answer)

    return asyncio.run(later())


def _door(client: Any, endpoint: str) -> Any:
    return client.completions.create if endpoint == "completions" else client.chat.completions.create


async def _all(parts: AsyncIterable[Any]) -> list[Any]:
    return [part async for part in parts]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", ANSWERED)
def test_answers_are_the_runtime_s(
    served: Served, model: dpad.DiffusionModel, name: str, endpoint: str, way: str
) -> None:
    """Fails if a text, its end, its usage or the number of answers is another than the runtime's."""
    case = ANSWERED[name]
    prompt = model.request(PROMPT, raw=endpoint == "completions")
    fields, seed = dict(case.fields), case.options.get("seed", 0)
    wanted = []
    for number in range(case.answers):
        options = {**OPTIONS, **case.options, "gen_length": case.tokens, "seed": seed + number}
        wanted.append(model.generate(prompt, **options))
    texts = [model.codec.decode(one.token_ids[: case.most]) for one in wanted]
    if case.stop:
        word = texts[0].split()[3]
        fields["stop"], texts[0] = [word, "never"], texts[0][: texts[0].index(word)]
    told = ask(served, endpoint, way, **fields)
    assert told.texts == dict(enumerate(texts))
    ended = [case.stop or len(one.token_ids) < (case.most or case.tokens) for one in wanted]
    assert told.reasons == {number: "stop" if end else "length" for number, end in enumerate(ended)}
    assert told.usage.prompt_tokens == len(prompt.prompt_ids)
    if not case.stop:
        assert told.usage.completion_tokens == sum(len(one.token_ids[: case.most]) for one in wanted)
        assert told.log == (told.usage.completion_tokens if "logprobs" in case.fields else 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_the_client_s_errors(served: Served, name: str, endpoint: str, way: str) -> None:
    """Fails if what cannot be served is answered, or does not arrive as the client's typed error with the field."""
    fields, kind, param = REFUSED[name]
    with pytest.raises(kind) as refused:
        ask(served, endpoint, way, **fields)
    assert refused.value.param == param and refused.value.code and refused.value.message
