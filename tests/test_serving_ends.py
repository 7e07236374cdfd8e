"""`dpad serve` at its beginning, at its end, and when something breaks."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from passes import SECONDS, until
from servers import SLOW, Served, Stream

from dpad.serving.server import listening


def test_a_signal_lets_everybody_finish(whole: Path, endless: str) -> None:
    """Fails if what runs or waits at SIGTERM is cut off, new requests are let in, or the exit status is not 0."""
    with Served(whole, "--max-running", 1, pass_seconds=SLOW) as server:
        with Stream(server, endless, max_tokens=200).begun() as running, Stream(server, endless, max_tokens=8) as waits:
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
    with pytest.raises(RuntimeError, match="dpad: InvalidRequest: .*(--api-key-file|cannot be read)"):
        Served(whole, *arguments)


def test_small_answers_are_sent_at_once() -> None:
    """Fails if connections lose TCP_NODELAY: asyncio sets it for sockets that name their protocol."""
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        with listener.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_said_first(whole: Path) -> None:
    """Fails if a large model is opened before it is found that it cannot be served."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(RuntimeError, match="dpad: InvalidRequest: cannot listen at 127.0.0.1"):
            Served(whole, "--port", taken.getsockname()[1])


def test_names_of_other_machines_are_refused(whole: Path) -> None:
    """Fails if a page whose name leads to this machine can ask a server that needs no key."""
    with Served(whole) as server:
        for host, status in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("evil.example", 403)):
            assert server.ask("GET", "/v1/models", host=host)[0] == status
