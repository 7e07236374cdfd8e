"""A real `dpad serve` in a process of its own, and OpenAI's own client for it.

    with Served(bundle) as served:
        served.client().models.list()
        served.post("/v1/completions", {"prompt": "w5"})       # status, headers, body
    Stream(served, "w5").begun().rest()                    # events

Standard error goes to a file: its first line says where the server listens, and the rest is its log.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai
from passes import SECONDS, until

LONG: dict[str, Any] = {"max_tokens": 240, "decoder": "fixed", "block_length": 8, "cache": "prefix", "schedule": "none"}
SLOW = 0.01  # seconds more a pass

_SLOWLY = """
import sys, time
from dpad.cli import main
from dpad.runtime.engines.onnx import OnnxEngine

step, seconds, broken = OnnxEngine._step, float(sys.argv.pop(1)), int(sys.argv.pop(1))
passes = []

def slowly(self, inputs):
    time.sleep(seconds)
    passes.append(self)
    if len(passes) == broken:
        raise RuntimeError("w77 of a user")
    return step(self, inputs)

OnnxEngine._step = slowly
main()
"""


class Served:
    """`dpad serve` over a bundle, at a free port."""

    def __init__(self, bundle: Path, *arguments: object, pass_seconds: float = 0.0, broken: int = 0) -> None:
        """Each pass takes `pass_seconds` more: time to look while it runs, never time that is measured.

        Pass number `broken` fails.
        """
        self.said = ""  # when it has ended
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        start = ["-c", _SLOWLY, str(pass_seconds), str(broken)] if pass_seconds or broken else ["-m", "dpad"]
        command = [sys.executable, *start, "serve", str(bundle), "--port", "0", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._log, env=environment)
        until(lambda: self._address() or self.process.poll() is not None)
        found = self._address()
        if not found:
            self.__exit__(None, None, None)
        assert found, self.said
        self.host, self.port = found[1], int(found[2])

    def _address(self) -> "re.Match[str] | None":
        return re.search(r" at http://([\d.]+):(\d+)/v1\n", self.log())

    def log(self) -> str:
        """What it has written to standard error."""
        return self.said or Path(self._log.name).read_text()

    def records(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def client(self, key: str = "none", **more: Any) -> openai.OpenAI:
        """OpenAI's own, which asks once."""
        return openai.OpenAI(base_url=f"http://{self.host}:{self.port}/v1", api_key=key, max_retries=0, **more)

    def async_client(self, key: str = "none") -> openai.AsyncOpenAI:
        """... for an event loop."""
        return openai.AsyncOpenAI(base_url=f"http://{self.host}:{self.port}/v1", api_key=key, max_retries=0)

    def connect(self) -> http.client.HTTPConnection:
        """A connection without a client's manners."""
        return http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body, which is read as JSON where it says so; `body` is bytes or becomes JSON."""
        connection = self.connect()
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        try:
            connection.request(method, path, data, given)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, told, json.loads(text) if told.get("content-type") == "application/json" else text

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """As `ask`."""
        return self.ask("POST", path, body, **headers)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.said = self.log()
        self._log.close()


class Stream:
    """A streamed completion that is being written; `close` hangs up."""

    def __init__(self, served: Served, prompt: str, key: str = "none", **body: Any) -> None:
        self.connection = served.connect()
        data = json.dumps({"prompt": prompt, **LONG, "stream": True, **body})
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
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
