"""What only diffusion can serve: infill, revisions, receipts. A real server, compared with the runtime."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from servers import Served

import dpad
from dpad.cli import main

OWN: dict[str, Any] = {"decoder": "fixed", "block_length": 8, "schedule": "none"}
OPTIONS: Any = {"decoder": "fixed", "block_length": 8, "schedule": dpad.Full()}
PROMPT = "w5 w6 w7 w9"


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole) as server:
        yield server


@pytest.fixture(scope="module")
def model(whole: Path) -> Iterator[dpad.DiffusionModel]:
    """The same bundle, without a server."""
    with dpad.load(whole, threads=1) as opened:
        yield opened


def answer(served: Served, path: str, **body: Any) -> Any:
    status, _, told = served.post(path, {**OWN, **body})
    assert status == 200, told
    return told


def events(served: Served, path: str, **body: Any) -> list[Any]:
    text = answer(served, path, **body, stream=True)
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_text_before_and_behind_comes_back_exactly(served: Served, model: dpad.DiffusionModel) -> None:
    """Fails if the given text is changed, or the blank is not what the runtime writes between the two."""
    prefix, suffix = " w5  w6 ", " w70\tw71 w72"
    told = answer(served, "/v1/infill", prefix=prefix, suffix=suffix, max_tokens=16)
    wanted = model.generate(model.request(prefix, raw=True, suffix=suffix), **OPTIONS, gen_length=16)
    [choice] = told["choices"]
    assert choice["blanks"] == [wanted.text] and choice["text"] == prefix + wanted.text + suffix
    assert told["object"] == "infill" and told["usage"]["completion_tokens"] == len(wanted.token_ids)
    assert choice["finish_reason"] == wanted.finish_reason


@pytest.mark.parametrize(
    "texts, lengths",
    [
        (["w5 w6 ", " w70 w71 ", ""], [5, 3]),  # a span of whole blocks
        (["w5 w6 ", " w70 w71 ", " w80 w81 w82 w83 w84 w85 w86 w87 w88"], [5, 6]),  # filled up from behind
        (["w5 w6 w7 w8 w9 w10 ", " w70 ", " w80"], [5, 6]),  # ... and from before
        (["", " w70 ", ""], [7, 6]),  # ... and with places that nobody reads
        (["w5 ", "", " w7"], [2, 2]),  # shorter than a block; two blanks beside each other
    ],
)
def test_a_template_keeps_its_texts(
    served: Served, model: dpad.DiffusionModel, texts: list[str], lengths: list[int]
) -> None:
    """Fails if a text of a template is changed or not seen, or a blank is not the runtime's own answer."""
    template: list[Any] = [texts[0]]
    for length, text in zip(lengths, texts[1:]):
        template += [{"tokens": length}, text]
    [choice] = answer(served, "/v1/infill", template=template)["choices"]
    told = choice["text"]
    for text, fill in zip(texts, [*choice["blanks"], ""]):
        assert told.startswith(text + fill)
        told = told.removeprefix(text + fill)
    assert told == ""
    assert choice["blanks"] == blanks_of(model, texts, lengths)


def blanks_of(model: dpad.DiffusionModel, texts: list[str], lengths: list[int]) -> list[str]:
    """What a canvas of the same places gives: every token a place of its own, all before the first blank a prompt."""
    encode = model.codec.encode_plain
    places: list[int | None] = [*encode(texts[0])]
    spans = []
    for length, text in zip(lengths, texts[1:]):
        spans.append((len(places), length))
        places += [None] * length + encode(text)  # type: ignore[operator]
    first, last = spans[0][0], sum(spans[-1])
    block = min(8, last - first)
    start, end = first, last
    while (end - start) % block and end < len(places):
        end += 1
    while (end - start) % block and start > 0:
        start -= 1
    while (end - start) % block:
        places.append(None)
        end += 1
    given = tuple(
        (place - start, token) for place, token in enumerate(places[:end]) if place >= start and token is not None
    )
    request = dpad.Request(places[:start], places[end:], given=given)  # type: ignore[arg-type]
    canvas = model.generate(request, **{**OPTIONS, "block_length": block}, gen_length=end - start).canvas.tolist()
    eos = model.engine.contract.eos_token_id
    found = [canvas[place : place + length] for place, length in spans]
    return [model.codec.decode(ids[: ids.index(eos)] if eos in ids else ids) for ids in found]


def test_a_prompt_counts_once_however_many_answers_it_has(served: Served) -> None:
    """Fails if the usage of an infill with several answers counts the given text for each of them."""
    body = {"prefix": "w5 w6 ", "suffix": " w7", "max_tokens": 8, "temperature": 1.0, "seed": 3}
    used = [served.post("/v1/infill", {**body, "n": n})[2]["usage"]["prompt_tokens"] for n in (1, 3)]
    assert used[0] == used[1] > 0


def test_streamed_fills_add_up(served: Served) -> None:
    """Fails if a piece of a blank is lost, or goes to another blank."""
    template = ["w5 ", {"tokens": 6}, " w70 ", {"tokens": 9}, " w80"]
    whole = answer(served, "/v1/infill", template=template, n=2, temperature=0.9, seed=3)
    fills = [["", ""], ["", ""]]
    reasons = [None, None]
    for part in events(served, "/v1/infill", template=template, n=2, temperature=0.9, seed=3):
        for choice in part["choices"]:
            reasons[choice["index"]] = choice["finish_reason"]
            for fill in choice["fills"]:
                fills[choice["index"]][fill["blank"]] += fill["text"]
    assert fills == [choice["blanks"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]


@pytest.mark.parametrize(
    "body, said",
    [
        ({}, "template"),
        ({"template": ["w5"]}, "blank"),
        ({"template": ["w5", {"tokens": 4}], "prefix": "w5"}, "prefix"),
        ({"template": ["w5", {"tokens": 0}]}, "tokens"),
        ({"template": ["w5", {"tokens": 10**6}]}, "canvas"),
        ({"prefix": "w5", "max_tokens": 8, "revisions": True}, "stream"),
    ],
)
def test_templates_that_cannot_be_filled(served: Served, body: dict[str, Any], said: str) -> None:
    """Fails if a body that says nothing, or two things, is served, or refused without saying why."""
    status, _, told = served.post("/v1/infill", body)
    assert status == 400 and said in told["error"]["message"], told


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/infill"])
def test_revisions_add_up_to_the_text(served: Served, model: dpad.DiffusionModel, path: str) -> None:
    """Fails if a pass, a token or a confidence is missing from the stream, or folding it gives another text."""
    asked: dict[str, Any] = {
        "/v1/completions": {"prompt": PROMPT},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}]},
        "/v1/infill": {"prefix": PROMPT, "suffix": ""},
    }[path]
    raw = path != "/v1/chat/completions"
    passes = list(model.stream(PROMPT, raw=raw, **OPTIONS, gen_length=24))
    told = events(served, path, **asked, max_tokens=24, revisions=True)
    revisions = [choice["revision"] for part in told for choice in part["choices"] if "revision" in choice]
    start = len(model.request(PROMPT, raw=raw).prompt_ids)
    canvas: dict[int, int] = {}
    for number, (revision, event) in enumerate(zip(revisions, passes), 1):
        assert revision["pass"] == number and revision["block"] == event.block and revision["step"] == event.step
        assert revision["positions"] == (event.positions - start).tolist()
        assert revision["tokens"] == event.tokens.tolist()
        assert revision["confidences"] == event.confidences.tolist()
        assert revision["texts"] == [model.codec.token_text(token) for token in revision["tokens"]]
        canvas |= dict(zip(revision["positions"], revision["tokens"]))
    ids = [canvas[place] for place in range(len(canvas)) if place in canvas]
    eos = model.engine.contract.eos_token_id
    generation = passes[-1].generation
    assert generation is not None
    assert model.codec.decode(ids[: ids.index(eos)] if eos in ids else ids) == generation.text
    assert len(revisions) == len(passes) or eos in ids


def test_a_receipt_is_repeated(served: Served, whole: Path, tmp_path: Path) -> None:
    """Fails if a receipt cannot be replayed from its file, or a change of anything in it goes unnoticed."""
    template = ["w5 ", {"tokens": 6}, " w70 ", {"tokens": 9}, " w80"]
    told = answer(served, "/v1/infill", template=template, temperature=0.7, seed=11, receipt=True)
    streamed = events(served, "/v1/infill", template=template, temperature=0.7, seed=11, receipt=True)
    receipt = told["choices"][0]["receipt"]
    assert streamed[-1]["choices"][0]["receipt"] == receipt
    assert len(receipt["passes"]) == told["usage"]["passes"]
    assert {"dpad", "onnxruntime", "numpy"} <= receipt["versions"].keys()

    def replayed(change: Any) -> tuple[int, str]:
        path = tmp_path / "receipt.json"
        path.write_text(json.dumps(change(json.loads(json.dumps(receipt)))))
        ran = CliRunner().invoke(main, ["replay", str(path), str(whole)])
        return ran.exit_code, ran.output

    def changed(*keys: Any, to: Any) -> Any:
        def change(document: Any) -> Any:
            place = document
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = to
            return document

        return change

    count = len(receipt["passes"])
    assert replayed(lambda document: document) == (0, f"the same, pass for pass: {count}\n")
    for keys, to, said in (
        (("options", "seed"), 12, "ReplayError: pass 1 differs"),
        (("request", "prompt_ids", 0), 6, "ReplayError: pass 1 differs"),
        (("passes", 3), "0" * 64, "ReplayError: pass 4 differs"),
        (("bundle",), "0" * 64, "ReplayError: the receipt is of bundle"),
        (("engine",), "nothing", "EngineUnavailable"),
        (("receipt",), 2, "InvalidRequest: this is not a receipt"),
        (("options",), [], "InvalidRequest: the receipt's options"),
        (("passes",), [], "InvalidRequest: the receipt holds no pass"),
        (("request",), {}, "InvalidRequest"),
        (("options", "cache"), "big", "InvalidRequest"),
    ):
        status, output = replayed(changed(*keys, to=to))
        assert status == 1 and said in output, (keys, output)
    ran = CliRunner().invoke(main, ["replay", str(tmp_path / "nothing"), str(whole)])
    assert ran.exit_code == 1 and "cannot be read as a receipt" in ran.output


def test_a_receipt_of_chat_is_of_what_the_template_wrote(
    served: Served, model: dpad.DiffusionModel, whole: Path, tmp_path: Path
) -> None:
    """Fails if a receipt holds other options than those that counted, or another prompt than the model saw."""
    messages = [{"role": "user", "content": PROMPT}]
    told = answer(served, "/v1/chat/completions", messages=messages, max_tokens=12, stop=["w999"], receipt=True)
    receipt = told["choices"][0]["receipt"]
    assert receipt["request"]["prompt_ids"] == list(model.request(PROMPT).prompt_ids)
    assert receipt["options"]["gen_length"] == 16 and receipt["options"]["seed"] == 0
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    ran = CliRunner().invoke(main, ["replay", str(path), str(whole), "--json"])
    assert json.loads(ran.output) == {"passes": told["usage"]["passes"], "differs": None}
