"""`dpad serve` outlives its engine, which runs in a process of its own: killed, stopped, and left without a server."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from passes import SECONDS, until
from server_process import alive, children
from servers import LONG, SLOW, Served, Stream

ANSWER = {"prompt": "w5 w6", "max_tokens": 32, "seed": 3, "temperature": 0.7}
GAUGES = ("dpad_sequences_running", "dpad_sequences_waiting", "dpad_pool_slots_used")


@pytest.fixture
def served(whole: Path) -> Iterator[Served]:
    with Served(whole, "--patience", 1, "--drain", 1, pass_seconds=SLOW) as server:
        yield server


def engine(server: Served) -> int:
    """The engine's process, as soon as it is there."""
    until(lambda: server.engine)
    assert server.engine is not None
    return server.engine


def kill(server: Served) -> None:
    os.kill(pid := engine(server), signal.SIGKILL)
    until(lambda: not alive(pid))


def events(server: Served, name: str) -> list[dict[str, Any]]:
    """Records of the log."""
    return [record for record in server.records() if record["event"] == name]


def ready(server: Served) -> bool:
    return bool(server.ask("GET", "/health/ready")[0] == 200)


def metrics(server: Served) -> dict[str, float]:
    """The sum of each metric over its labels."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:{[^}]*})? ([-\d.e+]+)$", server.ask("GET", "/metrics")[2], re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def answer(server: Served) -> Any:
    status, _, told = server.post("/v1/completions", ANSWER)
    assert status == 200, told
    return told["choices"]


def test_whoever_is_answered_hears_of_the_end(served: Served, endless: str) -> None:
    """Fails if a request hangs or ends without an error when the engine is killed, no engine takes its place, another
    one answers otherwise, or a sequence is not counted; and the same when the next one is killed, too."""
    wanted, passes = answer(served), 0.0
    for number in (1, 2):
        with ThreadPoolExecutor(2) as threads, Stream(served, endless) as one, Stream(served, endless, n=2) as two:
            body = {"prompt": endless, **LONG}
            asked = [threads.submit(served.post, "/v1/completions", {**body, "n": count}) for count in (1, 2)]
            one.begun()
            two.begun()
            until(lambda: sum(metrics(served)[name] for name in GAUGES[:2]) == 6)
            assert metrics(served)["dpad_passes_total"] > passes
            passes = metrics(served)["dpad_passes_total"]
            kill(served)
            for told in (one.rest(), two.rest()):
                assert told[-1]["error"]["code"] == "engine_ended" and "[DONE]" not in told
            for status, headers, told in [each.result(SECONDS) for each in asked]:
                assert (status, told["error"]["code"]) == (503, "engine_ended") and headers["retry-after"]
        until(lambda: ready(served))
        assert answer(served) == wanted
        found = metrics(served)
        assert not any(found[name] for name in GAUGES) and found["dpad_engine_restarts_total"] == number
        assert found["dpad_sequences_admitted_total"] == found["dpad_sequences_finished_total"] == number * 7 + 1
        assert found["dpad_passes_total"] > passes
    assert [each["signal"] for each in events(served, "engine ended")] == ["SIGKILL"] * 2
    assert [each["sequences"] for each in events(served, "engine ended")] == [6, 6]
    assert len(events(served, "engine started")) == 3
    assert [each["in_seconds"] for each in events(served, "engine starts again")] == [0, 1]
    assert served.stop() == 0 and not children(served.process.pid)


def test_an_engine_that_does_not_start_is_waited_for(served: Served) -> None:
    """Fails if requests hang or get no Retry-After while engines end at their start, or the server gives up."""
    kill(served)
    for _ in range(2):
        kill(served)  # as soon as it is there, before it is open
    until(lambda: len(events(served, "engine starts again")) == 3)
    assert [each["in_seconds"] for each in events(served, "engine starts again")] == [0, 1, 2]
    assert events(served, "engine not started")
    status, headers, told = served.post("/v1/completions", ANSWER)
    assert (status, told["error"]["code"]) == (503, "engine_ended") and 1 <= int(headers["retry-after"]) <= 60
    status, _, told = served.ask("GET", "/health/ready")
    assert status == 503 and "being started again" in told["status"]
    assert served.ask("GET", "/health/live")[0] == 200
    found = metrics(served)
    assert not any(found[name] for name in GAUGES) and not found["dpad_sequences_admitted_total"]
    until(lambda: ready(served))
    assert answer(served)


def test_the_first_engine_must_start(whole: Path) -> None:
    """Fails if a server without an engine starts, or hides why, or an error of loading loses its words."""
    command = [sys.executable, "-m", "dpad", "serve", "--port", "0"]
    with subprocess.Popen([*command, str(whole)], stderr=subprocess.PIPE, text=True) as process:
        until(lambda: children(process.pid))
        for pid in children(process.pid):
            os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 1 and "dpad: EngineError: the process" in said and "SIGKILL" in said
    for arguments, wanted in (([str(whole), "--engine", "zork"], "zork"), ([str(whole.parent)], "MissingFile")):
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == 1 and "dpad: " in ran.stderr and wanted in ran.stderr, ran.stderr
        assert "Traceback" not in ran.stderr


def test_an_engine_that_ends_while_the_server_drains(served: Served, endless: str) -> None:
    """Fails if a server waits for an engine that is gone, starts another one, or hides that an answer was cut off."""
    with Stream(served, endless).begun() as stream:
        served.terminate()
        until(lambda: events(served, "draining"))
        kill(served)
        assert stream.rest()[-1]["error"]["code"] == "engine_ended"
    assert served.process.wait(SECONDS) == 1
    assert len(events(served, "engine started")) == 1


def test_an_engine_that_hangs(served: Served, endless: str) -> None:
    """Fails if a server whose engine stands still is called ready, or does not end at its limit."""
    pid = engine(served)
    with Stream(served, endless).begun() as stream:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: not ready(served))
        assert served.ask("GET", "/health/live")[0] == 200
        served.terminate()
        assert stream.rest()[-1]["error"]["type"] == "service_unavailable"
    assert served.process.wait(SECONDS) == 1
    assert not alive(pid)


def test_an_idle_engine_that_hangs(served: Served) -> None:
    """Fails if a server is called ready whose engine takes nothing, or one that goes on again is not."""
    pid = engine(served)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not ready(served))
    os.kill(pid, signal.SIGCONT)
    until(lambda: ready(served))


@pytest.mark.parametrize("engine_is", ["idle", "busy", "hanging"])
def test_no_engine_is_left_without_its_server(served: Served, endless: str, engine_is: str) -> None:
    """Fails if the engine's process outlives a server that is killed."""
    pid = engine(served)
    with Stream(served, endless) as stream:
        if engine_is == "busy":
            stream.begun()
        if engine_is == "hanging":
            os.kill(pid, signal.SIGSTOP)
        served.process.kill()
        until(lambda: not alive(pid))


def test_signals_for_all_processes_are_the_server_s(served: Served, endless: str) -> None:
    """Fails if an engine ends by the SIGTERM that systemd sends to it, too, or by Ctrl-C, before requests are done."""
    with Stream(served, endless, max_tokens=16).begun() as stream:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(engine(served), number)
        assert os.getsid(engine(served)) != os.getsid(served.process.pid)
        assert stream.rest()[-1] == "[DONE]"
    assert served.stop() == 0


def test_the_place_of_a_client_that_left_is_free_before_its_pass_ends(whole: Path, endless: str) -> None:
    """Fails if the engine's own queue refuses a request that the server has room for."""
    with Served(whole, "--max-running", 2, "--max-waiting", 1, pass_seconds=0.3) as served:
        with Stream(served, endless).begun(), Stream(served, endless).begun():
            pass

        def answered() -> bool:
            status, _, told = served.post("/v1/completions", {"prompt": "w5", "n": 3, "max_tokens": 1})
            assert status == 200 or "the server holds" in told["error"]["message"], told
            return status == 200

        until(answered)
