"""`Client`: asks a server over HTTP, in an event loop, and takes the time.

async with connected(target) as client:
    answer = await client.ask({"prompt": "What is", "max_tokens": 8})
    answer.status, answer.seconds, answer.text, answer.reason
    await client.metric("dpad_sequences_running")
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import click
import numpy as np

import measure
from serving_load.target import Target

COMPLETIONS, CHAT, INFILL = "/v1/completions", "/v1/chat/completions", "/v1/infill"
_PATIENCE = 60.0  # seconds until what hangs is called so
GAUGES = ("dpad_sequences_running", "dpad_sequences_waiting", "dpad_pool_slots_used")


@dataclass
class Answer:
    """What a server said.

    Attributes:
        seconds: from the request to the last byte; `first` to the first event of a stream.
        documents: the body; of a stream every event.
        raw: what was no JSON, or all of an error's body.
    """

    status: int
    headers: dict[str, str]
    seconds: float
    first: float = 0.0
    documents: list[Any] = field(default_factory=list)
    raw: str = ""
    complete: bool = False

    @property
    def choices(self) -> list[Any]:
        """The choices of all documents, one behind the other."""
        return [choice for document in self.documents for choice in document.get("choices", ())]

    @property
    def text(self) -> str:
        """Of a completion with one choice."""
        return "".join(choice["text"] for choice in self.choices)

    @property
    def reason(self) -> str | None:
        """Why it ended; None where it did not."""
        return next((each["finish_reason"] for each in reversed(self.choices) if each["finish_reason"]), None)

    @property
    def whole(self) -> bool:
        """It came, with a reason why it ended, up to its end."""
        return self.status == 200 and self.reason is not None and self.complete


class Client:
    """Of one server; any number of requests at a time."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def ask(self, body: Any, path: str = COMPLETIONS, **headers: str) -> Answer:
        """One request; `body` is bytes or becomes JSON. Streams are read to their end."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        began = time.perf_counter()
        async with self.session.post(self.url + path, data=data, headers=told) as got:
            answer = Answer(got.status, {key.lower(): value for key, value in got.headers.items()}, 0.0)
            if got.content_type == "text/event-stream":
                async for line in got.content:
                    answer.first = answer.first or time.perf_counter() - began
                    self._take(answer, line.decode())
            else:
                answer.raw = await got.text()
                answer.complete = got.status == 200
                if got.content_type == "application/json":
                    answer.documents = [json.loads(answer.raw)]
        answer.seconds = time.perf_counter() - began
        return answer

    async def whole(self, body: Any, **headers: str) -> Answer:
        """As `ask`, of a completion that must be answered in full; `ClickException` where it is not."""
        answer = await self.ask(body, **headers)
        if not answer.whole:
            raise click.ClickException(f"the server answered {answer.status} to what it must serve: {answer.raw}")
        return answer

    @staticmethod
    def _take(answer: Answer, line: str) -> None:
        if line.startswith("data: [DONE]"):
            answer.complete = True
        elif line.startswith("data: "):
            answer.documents.append(json.loads(line[6:]))

    async def get(self, path: str, **headers: str) -> Answer:
        """A GET."""
        began = time.perf_counter()
        async with self.session.get(self.url + path, headers=headers) as got:
            text = await got.text()
            told = {key.lower(): value for key, value in got.headers.items()}
            return Answer(got.status, told, time.perf_counter() - began, raw=text)

    async def metrics(self, **headers: str) -> dict[str, float]:
        """The sum of each metric over its labels."""
        found: dict[str, float] = {}
        text = (await self.get("/metrics", **headers)).raw
        for name, value in re.findall(r"^(\w+)(?:{[^}]*})? ([-\d.e+]+)$", text, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    async def metric(self, name: str) -> float:
        """One of them."""
        return (await self.metrics())[name]

    async def idle(self) -> float:
        """Wait until nothing runs, waits or holds a slot; the seconds that it took."""
        began = time.perf_counter()
        while True:
            found = await self.metrics()
            if not any(found[name] for name in GAUGES):
                return time.perf_counter() - began
            if time.perf_counter() - began > _PATIENCE:
                raise TimeoutError(f"after {_PATIENCE:g} s: { {name: found[name] for name in GAUGES} }")
            await asyncio.sleep(1e-3)

    async def balance(self) -> dict[str, Any]:
        """Sequences admitted, sequences ended by reason, and whether they are as many, once the server is idle."""
        await self.idle()
        end = time.perf_counter() + 5
        while True:
            found = await self.metrics()
            admitted, ended = found["dpad_sequences_admitted_total"], found["dpad_sequences_finished_total"]
            if admitted == ended or time.perf_counter() > end:
                break
            await asyncio.sleep(0.01)
        text = (await self.get("/metrics")).raw
        reasons = re.findall(r'^dpad_sequences_finished_total{reason="(\w+)"} ([\d.e+]+)$', text, re.MULTILINE)
        return {
            "admitted": int(admitted),
            "finished": {reason: int(float(count)) for reason, count in reasons if float(count)},
            "equal": admitted == ended,
        }


@asynccontextmanager
async def connected(target: Target) -> AsyncIterator[Client]:
    """A client without a limit of connections."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session, target.url)


async def crowd(clients: int, seconds: float, turn: Callable[[int], Awaitable[object]]) -> float:
    """`clients` at a time, each of which takes turn after turn for `seconds`; the seconds until the last has ended."""
    began = time.perf_counter()

    async def one(number: int) -> None:
        while time.perf_counter() - began < seconds:
            await turn(number)

    await asyncio.gather(*map(one, range(clients)))
    return time.perf_counter() - began


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and the most, in milliseconds, and of how many."""
    if not seconds:
        return {"count": 0}
    p50, p99 = np.percentile(seconds, (50, 99))
    found = {"p50": p50, "p99": p99, "most": max(seconds)}
    return {name: measure.digits(1e3 * float(value)) for name, value in found.items()} | {"count": len(seconds)}
