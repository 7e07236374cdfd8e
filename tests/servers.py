"""A real `dpad serve` in a process of its own, and OpenAI's own client for it.

with Served(bundle) as served:
    served.client().models.list()
    served.post("/v1/completions", {"prompt": "w5"})       # status, headers, body
Stream(served, "w5").begun().rest()                    # events
"""

import http.client
import json
from pathlib import Path
from typing import Any

import openai
import slow_passes
from passes import SECONDS
from server_process import ServerProcess

LONG: dict[str, Any] = {"max_tokens": 240, "decoder": "fixed", "block_length": 8, "cache": "prefix", "schedule": "none"}
SLOW = 0.01  # seconds more a pass


class Served(ServerProcess):
    """`dpad serve` over a bundle, at a free port."""

    def __init__(self, bundle: Path, *arguments: object, pass_seconds: float = 0.0, broken: int = 0) -> None:
        """Each pass takes `pass_seconds` more: time to look while it runs, never time that is measured.

        Pass number `broken` fails.
        """
        start = [slow_passes.__file__, str(pass_seconds), str(broken)] if pass_seconds or broken else ["-m", "dpad"]
        super().__init__([*start, "serve", str(bundle), "--port", "0", *map(str, arguments)])

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
