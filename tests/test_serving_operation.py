"""`dpad serve` as whoever runs it meets it: health, metrics, logs, keys, limits, overload, hang-ups, the end."""

import json
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from passes import until
from servers import LONG, SLOW, Served, Stream

KEY, OTHER_KEY = "k3y-0123456789abcdef", "0ther-0123456789abcdef"
SECRET = "w77 w78 w79"


@pytest.fixture(scope="module")
def served(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With keys, room for two sequences and one that waits."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# those of the tests\n\n{KEY}\n{OTHER_KEY}\n")
    limits = ("--max-running", 2, "--max-waiting", 1, "--max-body", 100_000, "--allow-origin", "https://page.example")
    with Served(whole, "--name", "random", "--api-key-file", keys, *limits, pass_seconds=SLOW) as server:
        yield server


def authorized(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def metric(served: Served, name: str) -> float:
    """The sum of a metric over its labels."""
    _, _, text = served.ask("GET", "/metrics", **authorized())
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? ([-\d.e+]+)$", text, re.MULTILINE)
    assert found, name
    return sum(map(float, found))


def unfinished(served: Served) -> float:
    return metric(served, "dpad_sequences_admitted_total") - metric(served, "dpad_sequences_finished_total")


def idle(served: Served) -> None:
    """Wait until nothing runs, and see that nothing is held."""
    until(lambda: metric(served, "dpad_sequences_running") + metric(served, "dpad_sequences_waiting") == 0)
    until(lambda: unfinished(served) == 0)
    assert metric(served, "dpad_pool_slots_used") == 0


def test_health_is_open_and_the_rest_is_not(served: Served) -> None:
    """Fails if a probe needs a key, or anything else does without one, or a wrong one is taken."""
    assert served.ask("GET", "/health/live")[::2] == (200, {"status": "live"})
    assert served.ask("GET", "/health/ready")[::2] == (200, {"status": "ready"})
    for path in ("/v1/models", "/metrics", "/nothing"):
        for given in ({}, authorized("wrong-0123456789abcdef"), {"authorization": KEY}, authorized(KEY + " x")):
            status, _, body = served.ask("GET", path, **given)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key"), (path, given)
    assert served.ask("GET", "/v1/models", **authorized(OTHER_KEY))[0] == 200
    with served.client("wrong-0123456789abcdef") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with served.client(KEY) as client:
        assert client.completions.create(model="random", prompt="w5", max_tokens=4).choices


def test_bodies_and_heads_have_limits(served: Served) -> None:
    """Fails if a body or a head is taken beyond its limit, told or not, or a body that a page may send unasked is."""
    assert served.post("/v1/completions", {"prompt": "w5 " * 50_000}, **authorized())[0] == 413
    connection = served.connect()
    chunks = (b" " * 1000 for _ in range(200))
    headers = {"content-type": "application/json", **authorized()}
    connection.request("POST", "/v1/completions", chunks, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    head = {f"x_{number}": "a" for number in range(900)}  # short enough for h11, however it is cut
    assert served.ask("GET", "/v1/models", **authorized(), **head)[0] == 431
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _, told = served.post("/v1/completions", b'{"prompt": "w5"}', content_type=kind, **authorized())
        assert (status, told["error"]["code"]) == (415, "wrong_content_type")


def test_paths_that_there_are_not(served: Served) -> None:
    """Fails if an unknown path or method gets no error of OpenAI's form, or does not say which methods there are."""
    assert served.ask("GET", "/v2", **authorized())[2]["error"]["code"] == "not_found"
    for method, path, allowed in (("GET", "/v1/completions", ["POST"]), ("POST", "/v1/models", ["GET", "HEAD"])):
        status, headers, told = served.ask(method, path, content_type="text/plain", **authorized())
        assert (status, told["error"]["code"]) == (405, "method_not_allowed")
        assert sorted(headers["allow"].split(", ")) == allowed


def test_pages_need_leave(served: Served) -> None:
    """Fails if a page from elsewhere may ask, or the one that was allowed may not."""
    for origin, allowed in (("https://page.example", "https://page.example"), ("https://evil.example", None)):
        asked = {"origin": origin, "access_control_request_method": "POST"}
        _, headers, _ = served.ask("OPTIONS", "/v1/completions", **asked)
        assert headers.get("access-control-allow-origin") == allowed


def test_a_request_has_an_id(served: Served) -> None:
    """Fails if an answer cannot be found in the log, or an id from outside could forge a line of it."""
    for given, taken in (("trace-42", True), ('x" , "status": 200', False)):
        _, headers, _ = served.post(
            "/v1/completions", {"prompt": "", "max_tokens": 4}, x_request_id=given, **authorized()
        )
        assert (headers["x-request-id"] == given) is taken
        name = headers["x-request-id"]
        until(lambda name=name: [each for each in served.records() if each.get("request_id") == name])


def test_too_many_are_told_when_to_come_again(served: Served, endless: str) -> None:
    """Fails if a full server queues, hangs, answers without Retry-After, or keeps places that are free again."""
    idle(served)
    with Stream(served, endless, KEY).begun(), Stream(served, endless, KEY).begun(), Stream(served, endless, KEY):
        until(lambda: metric(served, "dpad_sequences_waiting") == 1)
        status, headers, body = served.post("/v1/completions", {"prompt": "w5"}, **authorized())
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(headers["retry-after"]) <= 60
        assert served.ask("GET", "/health/ready")[0] == 200
        assert 0 < metric(served, "dpad_pool_slots_used") <= metric(served, "dpad_pool_slots")
    idle(served)
    assert served.post("/v1/completions", {"prompt": "w5", "max_tokens": 4}, **authorized())[0] == 200
    assert served.post("/v1/completions", {"prompt": "w5", "n": 4}, **authorized())[0] == 400


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_not_decoded_for(served: Served, endless: str, stream: bool) -> None:
    """Fails if passes go on for a client that is gone, or the metrics do not say what became of it."""
    idle(served)
    cancelled = re.escape('dpad_sequences_finished_total{reason="cancelled"}')
    before = metric(served, cancelled)
    with Stream(served, endless, KEY, stream=stream) as asked:
        if stream:
            asked.begun()
        until(lambda: metric(served, "dpad_sequences_running") > 0)
    idle(served)
    assert metric(served, cancelled) == before + 1
    passes = metric(served, "dpad_passes_total")
    time.sleep(5 * SLOW)
    assert metric(served, "dpad_passes_total") == passes


def test_hang_ups_at_any_moment_leave_nothing(served: Served, endless: str) -> None:
    """Fails if a place, a slot or a count is lost by clients that leave in the body, the queue or the text."""
    idle(served)
    rng = random.Random(5)
    data = json.dumps({"prompt": endless, **LONG}).encode()
    for number in range(60):
        streamed = json.dumps({"prompt": endless, **LONG, "stream": True}).encode() if number % 2 else data
        head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(streamed)}\r\n\r\n"
        whole = head.encode() + streamed
        with socket.create_connection((served.host, served.port), 30) as client:
            client.sendall(whole if rng.random() < 0.7 else whole[: rng.randrange(len(whole))])
            time.sleep(rng.random() * 5 * SLOW)
    idle(served)
    with ExitStack() as stack:  # all three places are there again
        for _ in range(2):
            stack.enter_context(Stream(served, endless, KEY).begun())
        stack.enter_context(Stream(served, endless, KEY))
        until(lambda: metric(served, "dpad_sequences_waiting") == 1)
    idle(served)


def test_the_metrics_add_up(served: Served) -> None:
    """Fails if tokens, passes or reasons are counted twice or not at all, or a label could hold a text."""
    idle(served)
    names = ("dpad_tokens_total", "dpad_passes_total", "dpad_sequences_finished_total", "dpad_sequence_seconds_total")
    before = [metric(served, name) for name in names]
    _, _, told = served.post("/v1/completions", {"prompt": "w5 w6", "max_tokens": 16, "n": 2}, **authorized())
    after = [metric(served, name) for name in names]
    assert after[0] - before[0] == told["usage"]["total_tokens"]
    assert 0 < after[1] - before[1] <= told["usage"]["passes"]
    assert after[2] - before[2] == 2 and after[3] > before[3]
    served.ask("GET", f"/v1/{SECRET.replace(' ', '-')}", **authorized())
    _, headers, text = served.ask("GET", "/metrics", **authorized())
    assert headers["content-type"].startswith("text/plain")
    assert 'endpoint="/v1/completions",status="200"' in text and 'endpoint="none",status="404"' in text


def test_nothing_private_is_written_down(served: Served) -> None:
    """Fails if a prompt, an answer or a key gets into the log, the metrics or an error that is not its owner's."""
    with served.client(KEY) as client:
        text = client.completions.create(model="random", prompt=SECRET, max_tokens=16, stop=["w999"]).choices[0].text
    served.post("/v1/completions", {"prompt": SECRET, "max_tokens": 9999, "foo": SECRET}, **authorized())
    served.post("/v1/completions", {"prompt": SECRET, "max_tokens": 9999}, **authorized())
    served.post("/v1/completions", {"prompt": [SECRET, 5]}, **authorized())
    served.ask("GET", f"/v1/models/{SECRET.replace(' ', '%20')}?key={OTHER_KEY}", **authorized())
    _, _, metrics = served.ask("GET", "/metrics", **authorized())
    for private in (*SECRET.split(), *text.split(), KEY, OTHER_KEY):
        assert private not in metrics and not re.search(rf"\b{private}\b", served.log()), private
    assert {record["event"] for record in served.records()} == {"engine started", "served"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_an_answer(served: Served, endless: str, stream: bool) -> None:
    """Fails if an answer outlives its deadline, or comes without what was decided by then, or without the reason."""
    body = {"prompt": endless, **LONG, "deadline_ms": 1000, "stream": stream}
    status, _, told = served.post("/v1/completions", body, **authorized())
    parts = [json.loads(line[6:]) for line in told.split("\n\n") if line[6:7] == "{"] if stream else [told]
    choices = [part["choices"][0] for part in parts]
    assert (status, choices[-1]["finish_reason"]) == (200, "deadline")
    assert 0 < len("".join(choice["text"] for choice in choices).split()) < 200
