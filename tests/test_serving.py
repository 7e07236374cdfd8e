"""`dpad serve` as OpenAI's own client meets it: a real server over a real bundle, compared with `generate`."""

import asyncio
import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from servers import Served

import dpad

PROMPT, OTHER = "w5 w6 w7 w9", "w21 w22"
OWN: dict[str, Any] = {"decoder": "fixed", "block_length": 8, "schedule": {"gaussian": {"k": 3, "window": 8}}}
OPTIONS: Any = {"decoder": "fixed", "block_length": 8, "schedule": dpad.Gaussian(k=3, window=8)}


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole, "--name", "random") as server:
        yield server


@pytest.fixture(scope="module")
def model(whole: Path) -> Iterator[dpad.DiffusionModel]:
    """The same bundle, without a server."""
    with dpad.load(whole, threads=1) as opened:
        yield opened


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client() as client:
        yield client


def expected(model: dpad.DiffusionModel, prompt: Any, tokens: int, **more: Any) -> dpad.Generation:
    """What the runtime makes of the same request."""
    length = -(-tokens // 8) * 8
    return model.generate(prompt, **{**OPTIONS, "gen_length": length, **more})


def test_completions_are_those_of_the_runtime(client: openai.OpenAI, model: dpad.DiffusionModel) -> None:
    """Fails if text, tokens or passes differ from `generate`, or the prompts of one request are mixed up."""
    told = client.completions.create(model="random", prompt=[PROMPT, OTHER], max_tokens=24, extra_body=OWN)
    wanted = [expected(model, model.request(prompt, raw=True), 24) for prompt in (PROMPT, OTHER)]
    assert [choice.text for choice in told.choices] == [one.text for one in wanted]
    assert [choice.index for choice in told.choices] == [0, 1]
    assert told.usage is not None
    assert told.usage.prompt_tokens == 6 and told.usage.total_tokens == 6 + told.usage.completion_tokens
    assert told.usage.completion_tokens == sum(len(one.token_ids) for one in wanted)
    assert 0 < told.usage.model_extra["passes"] <= sum(one.nfe for one in wanted)


def test_token_ids_are_a_prompt(client: openai.OpenAI, model: dpad.DiffusionModel) -> None:
    """Fails if a list of numbers is taken for several prompts, or is encoded again."""
    told = client.completions.create(model="random", prompt=[11, 42, 7], max_tokens=8, extra_body=OWN)
    assert told.choices[0].text == expected(model, [11, 42, 7], 8).text


def test_chat_is_written_by_the_template(client: openai.OpenAI, model: dpad.DiffusionModel) -> None:
    """Fails if the chat template is left out, or the parts of a message are not joined."""
    messages: Any = [
        {"role": "system", "content": "w1"},
        {"role": "user", "content": [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w6"}]},
    ]
    told = client.chat.completions.create(model="random", messages=messages, max_tokens=16, extra_body=OWN)
    plain = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w5 w6"}]
    assert told.choices[0].message.content == expected(model, plain, 16).text
    assert told.choices[0].message.role == "assistant" and told.object == "chat.completion"
    again = client.chat.completions.create(
        model="random", messages=[*messages, told.choices[0].message, messages[1]], max_completion_tokens=4, user="u"
    )
    assert again.usage and again.usage.completion_tokens <= 4


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI, kind: str) -> None:
    """Fails if a piece of a streamed text is lost, told twice or changed, or the usage at its end is another."""
    given: dict[str, Any] = {"model": "random", "max_tokens": 24, "n": 2, "temperature": 0.8, "seed": 4}
    if kind == "chat":
        create, more = client.chat.completions.create, {"messages": [{"role": "user", "content": PROMPT}]}
    else:
        create, more = client.completions.create, {"prompt": PROMPT}
    whole = create(**given, **more, extra_body=OWN)
    texts, reasons, pieces = ["", ""], [None, None], 0
    for part in create(**given, **more, extra_body=OWN, stream=True, stream_options={"include_usage": True}):
        for choice in part.choices:
            texts[choice.index] += (choice.delta.content if kind == "chat" else choice.text) or ""
            reasons[choice.index] = reasons[choice.index] or choice.finish_reason
            pieces += 1
        usage = part.usage
    told = [choice.message.content if kind == "chat" else choice.text for choice in whole.choices]
    assert texts == told and reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage and pieces > 4
    assert told[0] != told[1], "the two answers have the same seed"


def test_a_seed_is_the_text(client: openai.OpenAI, model: dpad.DiffusionModel) -> None:
    """Fails if a seed does not repeat a draw, the answers of n have the wrong ones, or no seed gives the same draw."""
    given: dict[str, Any] = {"model": "random", "prompt": PROMPT, "max_tokens": 16, "temperature": 1.0}
    first = client.completions.create(**given, n=3, seed=7, extra_body=OWN)
    for number, choice in enumerate(first.choices):
        request = dpad.Request(model.request(PROMPT, raw=True).prompt_ids, seed=7 + number)
        assert choice.text == expected(model, request, 16, temperature=1.0).text
    free = {client.completions.create(**given, extra_body=OWN).choices[0].text for _ in range(4)}
    assert len(free) > 1


def test_limits_of_an_answer(client: openai.OpenAI, model: dpad.DiffusionModel) -> None:
    """Fails if max_tokens or a stop sequence does not cut, cuts elsewhere, or is not told as the reason."""
    whole = expected(model, model.request(PROMPT, raw=True), 24)
    words = whole.text.split()
    assert len(words) > 8
    given: dict[str, Any] = {"model": "random", "prompt": PROMPT, "extra_body": OWN}
    cut = client.completions.create(**given, max_tokens=5)
    assert cut.usage and (cut.usage.completion_tokens, cut.choices[0].finish_reason) == (5, "length")
    word = next(word for number, word in enumerate(words) if number >= 3 and word not in words[:number])
    for stop in (word, [word, "nothing of the kind"], f"{word[:2]}"):
        wanted = whole.text[: whole.text.index(stop if isinstance(stop, str) else word)]
        told = client.completions.create(**given, max_tokens=24, stop=stop)
        assert (told.choices[0].text, told.choices[0].finish_reason) == (wanted, "stop")
        parts = list(client.completions.create(**given, max_tokens=24, stop=stop, stream=True))
        assert "".join(part.choices[0].text for part in parts) == wanted


def test_logprobs_are_of_the_committed_tokens(client: openai.OpenAI, model: dpad.DiffusionModel) -> None:
    """Fails if a token, its probability or its place in the text is another than the runtime's."""
    request = model.request(PROMPT, raw=True)
    sure: dict[int, float] = {}
    for event in model.stream(request, **{**OPTIONS, "gen_length": 16}):
        sure |= dict(zip(event.positions.tolist(), event.confidences.tolist()))
    text = client.completions.create(
        model="random", prompt=PROMPT, max_tokens=16, logprobs=1, echo=True, extra_body=OWN
    ).choices[0]
    assert text.logprobs and text.logprobs.tokens and text.logprobs.token_logprobs and text.logprobs.text_offset
    for place, (token, logprob) in enumerate(zip(text.logprobs.tokens, text.logprobs.token_logprobs)):
        assert logprob == pytest.approx(math.log(sure[len(request.prompt_ids) + place]))
        assert token in text.text[text.logprobs.text_offset[place] :]
    assert text.text.startswith(PROMPT)
    chat = client.chat.completions.create(
        model="random", messages=[{"role": "user", "content": PROMPT}], max_tokens=16, logprobs=True, extra_body=OWN
    ).choices[0]
    assert chat.logprobs and chat.logprobs.content
    assert [part.token for part in chat.logprobs.content] == (chat.message.content or "").split()
    assert all(bytes(part.bytes or []).decode() == part.token and part.logprob <= 0 for part in chat.logprobs.content)


def test_the_models_are_one(client: openai.OpenAI) -> None:
    """Fails if the list does not name the model, or another is served under a wrong name."""
    assert [model.id for model in client.models.list()] == ["random"]
    assert client.models.retrieve("random").owned_by == "dpad"
    with pytest.raises(openai.NotFoundError, match="'random'"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="'random'"):
        client.completions.create(model="gpt-4", prompt="w5")


def test_many_at_a_time_get_what_each_gets_alone(served: Served, model: dpad.DiffusionModel) -> None:
    """Fails if concurrent clients are mixed up, streamed or not."""
    prompts = [f"w{number} w{number + 1}" for number in range(10, 22)]

    async def ask(client: openai.AsyncOpenAI, prompt: str, stream: bool) -> str:
        given: Any = {"model": "random", "prompt": prompt, "max_tokens": 16, "extra_body": OWN}
        if not stream:
            return (await client.completions.create(**given)).choices[0].text
        return "".join([part.choices[0].text async for part in await client.completions.create(**given, stream=True)])

    async def gather() -> list[str]:
        async with served.async_client() as client:
            asked = [ask(client, prompt, number % 2 == 0) for number, prompt in enumerate(prompts)]
            return await asyncio.gather(*asked)

    wanted = [expected(model, model.request(prompt, raw=True), 16).text for prompt in prompts]
    assert asyncio.run(gather()) == wanted


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a field that is unknown": ({"foo": 1}, "foo", "unknown_field"),
    "an option of another tool": ({"extra_body": {"num_beams": 2}}, "extra_body", "unknown_field"),
    "tools": ({"best_of": 3}, "best_of", "invalid_request"),
    "a penalty": ({"frequency_penalty": 0.5}, "frequency_penalty", "invalid_request"),
    "a truth value as a number": ({"max_tokens": True}, "max_tokens", "invalid_request"),
    "a number as text": ({"max_tokens": "8"}, "max_tokens", "invalid_request"),
    "too many answers": ({"n": 10**9}, "n", "invalid_request"),
    "no temperature": ({"temperature": -1}, "temperature", "invalid_request"),
    "no prompt": ({"prompt": {"text": "w5"}}, "prompt", "invalid_request"),
    "an empty list": ({"prompt": []}, "prompt", "invalid_request"),
    "a cache that is none": ({"cache": "big"}, "cache 'big'", "invalid_request"),
    "a canvas that is too long": ({"max_tokens": 512}, "canvas", "invalid_request"),
    "the mask": ({"prompt": [127]}, "mask", "invalid_request"),
    "more ids than a canvas holds": ({"prompt": [127] * 9000}, "9000 tokens", "invalid_request"),
    "a schedule that is none": ({"schedule": {"gaussian": {"kk": 1}}}, "schedule", "invalid_request"),
    "a preset that is none": ({"preset": "p"}, "preset 'p'", "invalid_request"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_the_field(served: Served, what: str) -> None:
    """Fails if what cannot be honoured is dropped without a word, or refused without its name, or not as 400."""
    fields, said, code = REFUSED[what]
    status, headers, body = served.post("/v1/completions", {"prompt": "w5", **fields})
    assert status == 400 and body.keys() == {"error"}, body
    error = body["error"]
    assert said in error["message"] and error["code"] == code and error["type"] == "invalid_request_error", error
    assert headers["x-request-id"]


UNREADABLE = {
    "empty": b"",
    "open": b"{",
    "deep": b"[" * 100_000,
    "half of a pair": b'{"prompt": "\\ud800"}',
    "no UTF-8": b'{"prompt": "\xff"}',
    "NaN": b'{"prompt": "w5", "temperature": NaN}',
    "infinite": b'{"prompt": "w5", "temperature": 1e309}',
    "huge": b'{"prompt": "w5", "seed": ' + b"9" * 5000 + b"}",
    "null": b"null",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_bodies_that_are_no_request(served: Served, body: bytes) -> None:
    """Fails if a body that cannot be read gets another answer than 400, or ends the server."""
    status, _, told = served.post("/v1/completions", body)
    assert status == 400 and told["error"]["type"] == "invalid_request_error", told
    assert served.ask("GET", "/v1/models")[0] == 200


HOSTILE: dict[str, tuple[Any, int]] = {
    "ten million characters": ({"prompt": "a" * 10**7}, 413),
    "a prompt that no canvas holds": ({"prompt": "w5 " * 300_000}, 400),
    "three hundred thousand ids": ({"prompt": [1] * 300_000}, 400),
    "a million items": (b'{"prompt": [' + b"1," * 10**6 + b"1]}", 413),
    "a number of many digits": (b'{"prompt": "w5", "top_k": ' + b"1" * 100_000 + b"}", 400),
    "the mask as text": ({"prompt": "<mask> <eos>", "max_tokens": 4}, 400),
    "emoji": ({"prompt": "\U0001f468\u200d\U0001f469 w5", "max_tokens": 4}, 200),
    "half of a pair in a name": (b'{"prompt": "w5", "\\ud800": 1}', 400),
    "a name twice": (b'{"prompt": "w5", "max_tokens": 4, "max_tokens": 5}', 200),
    "a role that is none": ({"messages": [{"role": "root", "content": "w5"}]}, 400),
    "a message without content": ({"messages": [{"role": "user"}]}, 400),
    "a message that is a list": ({"messages": [["user", "w5"]]}, 400),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400),
    "too many messages": ({"messages": [{"role": "user", "content": ""}] * 2000}, 400),
    "a million stops": ({"prompt": "w5", "stop": ["x"] * 100_000}, 400),
    "an empty stop": ({"prompt": "w5", "stop": ""}, 400),
    "a schedule of rubbish": ({"prompt": "w5", "schedule": {"gaussian": {"k": -1e300}}}, 400),
    "steps that do not fit": ({"prompt": "w5", "decoder": "fixed", "steps": 7}, 400),
    "a threshold beyond one": ({"prompt": "w5", "threshold": 5}, 400),
    "a pool that is too small": ({"prompt": "w5", "max_tokens": 1 << 20}, 400),
    "an empty prompt": ({"prompt": "", "max_tokens": 4}, 200),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bodies(served: Served, what: str) -> None:
    """Fails if a body made to hurt gets another answer than its own, or the server is gone after it."""
    body, wanted = HOSTILE[what]
    chat = b"messages" in body if isinstance(body, bytes) else "messages" in body
    try:
        status, _, told = served.post("/v1/chat/completions" if chat else "/v1/completions", body)
    except (ConnectionError, TimeoutError):  # it hung up on a body that it did not want to read
        status, told = 413, ""
    assert status == wanted, told
    assert served.ask("GET", "/health/live")[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx\x00y: z\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/models/%ff%fe%00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
def test_hostile_heads(served: Served, head: bytes) -> None:
    """Fails if a head that two readers could read in two ways is served, or one ends the server."""
    with socket.create_connection((served.host, served.port), 30) as connection:
        connection.sendall(head)
        answer = connection.recv(1000)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
    assert served.ask("GET", "/health/live")[0] == 200
