"""`dpad serve` as whoever runs it meets it: health, metrics, logs, keys, limits, overload, hang-ups, the end."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from passes import SECONDS, until
from servers import Served

import dpad

KEY, OTHER_KEY = "k3y-0123456789abcdef", "0ther-0123456789abcdef"
SECRET = "w77 w78 w79"
LONG: dict[str, Any] = {"max_tokens": 240, "decoder": "fixed", "block_length": 8, "cache": "prefix", "schedule": "none"}
SLOW = 0.01  # seconds more a pass


@pytest.fixture(scope="module")
def endless(whole: Path) -> str:
    """A prompt to which the random model writes at least 200 tokens."""
    options: Any = {"gen_length": 240, "decoder": "fixed", "block_length": 8, "schedule": dpad.Full()}
    with dpad.load(whole, threads=1) as model:
        prompts = (f"w{number} w{number // 7}" for number in range(5, 125))
        return next(each for each in prompts if model.generate(each, raw=True, **options).nfe >= 200)


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


class Stream:
    """A streamed completion that is being written; `close` hangs up."""

    def __init__(self, served: Served, prompt: str, **body: Any) -> None:
        self.connection = served.connect()
        data = json.dumps({"prompt": prompt, **LONG, "stream": True, **body})
        headers = {"content-type": "application/json", **authorized()}
        self.connection.request("POST", "/v1/completions", data, headers)

    def begun(self) -> "Stream":
        """It has brought its first event."""
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.readline().startswith(b"data: ")
        return self

    def rest(self) -> list[Any]:
        """The events that are left, parsed."""
        lines = [line.removeprefix(b"data: ").strip() for line in self.answer.read().splitlines()]
        return [json.loads(line) if line != b"[DONE]" else "[DONE]" for line in lines if line]

    def close(self) -> None:
        if hasattr(self, "answer"):
            self.answer.close()
        self.connection.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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


def test_bodies_have_limits(served: Served) -> None:
    """Fails if a body is read beyond its limit, told or not, or one that a page may send unasked is taken."""
    assert served.post("/v1/completions", {"prompt": "w5 " * 50_000}, **authorized())[0] == 413
    connection = served.connect()
    chunks = (b" " * 1000 for _ in range(200))
    headers = {"content-type": "application/json", **authorized()}
    connection.request("POST", "/v1/completions", chunks, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _, told = served.post("/v1/completions", b'{"prompt": "w5"}', content_type=kind, **authorized())
        assert (status, told["error"]["code"]) == (415, "wrong_content_type")


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
    with Stream(served, endless).begun(), Stream(served, endless).begun(), Stream(served, endless):
        until(lambda: metric(served, "dpad_sequences_waiting") == 1)
        status, headers, body = served.post("/v1/completions", {"prompt": "w5"}, **authorized())
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(headers["retry-after"]) <= 60
        assert served.ask("GET", "/health/ready")[0] == 200
        assert 0 < metric(served, "dpad_pool_slots_used") <= metric(served, "dpad_pool_slots")
    idle(served)
    assert served.post("/v1/completions", {"prompt": "w5", "max_tokens": 4}, **authorized())[0] == 200
    assert served.post("/v1/completions", {"prompt": "w5", "n": 4}, **authorized())[0] == 429


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_not_decoded_for(served: Served, endless: str, stream: bool) -> None:
    """Fails if passes go on for a client that is gone, or the metrics do not say what became of it."""
    idle(served)
    cancelled = re.escape('dpad_sequences_finished_total{reason="cancelled"}')
    before = metric(served, cancelled)
    with Stream(served, endless, stream=stream) as asked:
        if stream:
            asked.begun()
        until(lambda: metric(served, "dpad_sequences_running") > 0)
    idle(served)
    assert metric(served, cancelled) == before + 1
    passes = metric(served, "dpad_passes_total")
    time.sleep(5 * SLOW)
    assert metric(served, "dpad_passes_total") == passes


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
    assert all(record["event"] in ("served", "draining", "ended") for record in served.records())


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_an_answer(served: Served, endless: str, stream: bool) -> None:
    """Fails if an answer outlives its deadline, or comes without what was decided by then, or without the reason."""
    body = {"prompt": endless, **LONG, "deadline_ms": 300, "stream": stream}
    status, _, told = served.post("/v1/completions", body, **authorized())
    parts = [json.loads(line[6:]) for line in told.split("\n\n") if line[6:7] == "{"] if stream else [told]
    choices = [part["choices"][0] for part in parts]
    assert (status, choices[-1]["finish_reason"]) == (200, "deadline")
    assert 0 < len("".join(choice["text"] for choice in choices).split()) < 200


def test_a_signal_lets_everybody_finish(whole: Path, endless: str) -> None:
    """Fails if what runs or waits at SIGTERM is cut off, new requests are let in, or the exit status is not 0."""
    with Served(whole, "--max-running", 1, pass_seconds=SLOW) as server:
        with Stream(server, endless, max_tokens=96).begun() as running, Stream(server, endless, max_tokens=8) as waits:
            until(lambda: "dpad_sequences_waiting 1.0" in server.ask("GET", "/metrics")[2])
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.ask("GET", "/health/ready")[0] == 503)
            status, headers, body = server.post("/v1/completions", {"prompt": "w5"})
            assert (status, body["error"]["code"]) == (503, "draining") and headers["retry-after"]
            assert server.ask("GET", "/health/live")[0] == 200
            events = running.rest()
            assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "length"
            assert waits.begun().rest()[-1] == "[DONE]"
        assert server.process.wait(SECONDS) == 0
        assert [record["lost"] for record in server.records() if record["event"] == "ended"] == [0]


def test_a_signal_s_limit_ends_what_runs(whole: Path, endless: str) -> None:
    """Fails if a drain outlives its limit, a stream is cut without an error, or the exit status hides it."""
    with Served(whole, "--drain", 0, pass_seconds=SLOW) as server:
        with Stream(server, endless).begun() as stream:
            server.process.send_signal(signal.SIGTERM)
            assert stream.rest()[-1]["error"]["type"] == "service_unavailable"
        assert server.process.wait(SECONDS) == 1


def test_a_pass_that_fails_is_told_in_the_stream(whole: Path, endless: str) -> None:
    """Fails if an engine's failure ends a stream without an error, is told with its message, or ends the server."""
    with Served(whole, "--max-running", 4, broken=30) as server:
        with Stream(server, endless).begun() as stream:
            told = stream.rest()
        assert told[-1]["error"]["code"] == "engine_error" and "[DONE]" not in told
        status, _, after = server.post("/v1/completions", {"prompt": "w5", "max_tokens": 4})
        assert status == 200 and after["choices"]
        assert 'dpad_sequences_finished_total{reason="error"} 1.0' in server.ask("GET", "/metrics")[2]
        [failed] = [record for record in server.records() if record["event"] == "failed"]
        assert failed["cause"] == "RuntimeError" and "w77" not in server.log() + json.dumps(told)


@pytest.mark.parametrize("stream", [True, False])
def test_a_pass_that_fails_is_the_client_s_error(whole: Path, endless: str, stream: bool) -> None:
    """Fails if OpenAI's client does not raise for an engine's failure, in the middle of a stream too."""
    given: Any = {"model": "random", "prompt": endless, "max_tokens": 96, "extra_body": {"decoder": "fixed"}}
    with Served(whole, "--name", "random", broken=20) as server, server.client() as client:
        with pytest.raises(openai.APIError, match="engine failed"):
            told = client.completions.create(**given, stream=stream)
            assert stream and len(list(told)) < 96


def test_heads_that_never_end_are_hung_up_on(whole: Path) -> None:
    """Fails if half a request holds a connection for ever, or one that is decoded for long is taken for that."""
    with Served(whole, "--read-timeout", 0.5, pass_seconds=SLOW) as server:
        slow = [socket.create_connection((server.host, server.port), SECONDS) for _ in range(20)]
        for number, one in enumerate(slow):
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-a: "[: 10 * number])
        body = {"prompt": "w5", "max_tokens": 96, "decoder": "fixed", "cache": "none"}
        assert server.post("/v1/completions", body)[0] == 200
        for one in slow:
            assert one.recv(1) == b""
            one.close()
        with socket.create_connection((server.host, server.port), SECONDS) as one:
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
            one.sendall(b"content-length: 10\r\n\r\n{")
            assert b"408" in one.recv(100)


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--api-key-file", "nowhere")])
def test_servers_that_do_not_start(whole: Path, arguments: tuple[str, ...]) -> None:
    """Fails if a server that others can reach asks nobody for a key, or one without its keys starts."""
    with pytest.raises(AssertionError, match="dpad: InvalidRequest: .*(--api-key-file|cannot be read)"):
        Served(whole, *arguments)


def test_a_port_that_is_taken_is_said_first(whole: Path, served: Served) -> None:
    """Fails if a large model is opened before it is found that it cannot be served."""
    with pytest.raises(AssertionError, match="dpad: InvalidRequest: cannot listen at 127.0.0.1"):
        Served(whole, "--port", served.port)


def test_names_of_other_machines_are_refused(whole: Path) -> None:
    """Fails if a page whose name leads to this machine can ask a server that needs no key."""
    with Served(whole) as server:
        for host, status in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("evil.example", 403)):
            assert server.ask("GET", "/v1/models", host=host)[0] == status
