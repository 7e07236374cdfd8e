"""`Exchange`: one request and its answer, streamed or whole, over ASGI.

    return Exchange(service, CompletionForm(body))      # from an endpoint; Starlette calls it

Nothing is sent before the first pass has ended, so that a refusal still gets its HTTP status. If the client hangs up
meanwhile, its sequences take part in no further pass.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from time import time
from typing import Any, Protocol
from uuid import uuid4

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dpad.runtime.decoding.event import StepEvent
from dpad.serving.errors import ApiError, as_api_error
from dpad.serving.schema import Sampling
from dpad.serving.service import Job, Service

Document = dict[str, Any]


class Form(Protocol):
    """One kind of request: reads it and writes its answer."""

    prefix: str  # of the answers' ids
    whole: str  # the kind of an answer, as OpenAI calls it
    part: str  # ... and of a part of one

    @property
    def body(self) -> Sampling:
        """The body of the request."""

    @property
    def count(self) -> int:
        """Number of sequences of the request."""

    def jobs(self, service: Service) -> list[Job]:
        """The sequences to decode; raises `InvalidRequest` if one cannot be decoded."""

    def begin(self, job: Job) -> Document | None:
        """The choice in the first part of a stream, before there is text; None for no such part."""

    def piece(self, job: Job, texts: list[str]) -> Document:
        """The choice in a part of a stream, with the texts that have become final."""

    def choice(self, job: Job) -> Document:
        """The choice in a whole answer."""


class Exchange:
    """An ASGI response."""

    def __init__(self, service: Service, form: Form) -> None:
        if form.body.model not in (None, service.name):
            raise ApiError(
                404, f"the model served here is {service.name!r}; ask for it, or leave the model out",
                "model_not_found", param="model",
            )  # fmt: skip
        if form.body.revisions and not form.body.stream:
            raise ApiError(
                400, "revisions come in a stream only; set stream, too", "invalid_request", param="revisions"
            )
        self._service, self._form = service, form
        self._head: Document = {
            "id": f"{form.prefix}-{uuid4().hex}",
            "object": form.part if form.body.stream else form.whole,
            "created": int(time()),
            "model": service.name,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; raises the errors that get an HTTP status of their own."""
        with self._service.hold(self._form.count):
            jobs = await asyncio.to_thread(self._form.jobs, self._service)
            try:
                await self._answer(jobs, scope, receive, send)
            finally:
                self._note(jobs, scope)

    async def _answer(self, jobs: Sequence[Job], scope: Scope, receive: Receive, send: Send) -> None:
        if self._form.body.stream:
            await unless_gone(receive, self._stream(jobs, send))
            return
        await unless_gone(receive, self._service.run(jobs, _quiet))
        whole = {
            **self._head,
            "choices": [self._form.choice(job) | _receipt(job) for job in jobs],
            "usage": usage(jobs),
        }
        await JSONResponse(whole)(scope, receive, send)

    def _note(self, jobs: Sequence[Job], scope: Scope) -> None:
        """Add the counts to the log and the metrics, also for an answer that was cut short."""
        counts = usage(jobs)
        self._service.metrics.tokens(counts["prompt_tokens"], counts["completion_tokens"])
        reasons = [job.finish_reason or "cancelled" for job in jobs]
        scope["state"]["facts"].update(counts, stream=bool(self._form.body.stream), finish_reasons=reasons)

    async def _stream(self, jobs: Sequence[Job], send: Send) -> None:
        events = EventSender(send)

        begun: set[Job] = set()

        async def emit(job: Job, event: StepEvent, texts: list[str]) -> None:
            if job not in begun and (first := self._form.begin(job)) is not None:
                await events.send({**self._head, "choices": [first]})
            begun.add(job)
            told = {"revision": revision(job, event)} if self._form.body.revisions else {}
            if any(texts) or told or job.finish_reason is not None:
                await events.send({**self._head, "choices": [self._form.piece(job, texts) | told | _receipt(job)]})

        try:
            await self._service.run(jobs, emit)
            if self._form.body.usage_at_end:
                await events.send({**self._head, "choices": [], "usage": usage(jobs)})
        except Exception as error:
            if events.started:
                await events.send(as_api_error(error).body())
                await events.end()
            raise
        await events.send("[DONE]")
        await events.end()


class EventSender:
    """Sends server-sent events; the first one starts the response."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def send(self, data: Document | str) -> None:
        """Send one event; waits while the client reads slowly."""
        if not self.started:
            self.started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        await self._send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

    async def end(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class Gone(Exception):
    """The client has hung up."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`; if the client hangs up, stop it and raise `Gone`."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    working.result()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _quiet(job: Job, event: StepEvent, texts: list[str]) -> None:
    """Send nothing: a whole answer is written at its end."""


def revision(job: Job, event: StepEvent) -> Document:
    """What a pass committed, with positions counted from the first generated one; together they give the canvas."""
    tokens = event.tokens.tolist()
    return {
        "pass": event.nfe,
        "block": event.block,
        "step": event.step,
        "positions": (event.positions - len(job.request.prompt_ids)).tolist(),
        "tokens": tokens,
        "texts": [job.choice.codec.token_text(token) for token in tokens],
        "confidences": event.confidences.tolist(),
    }


def _receipt(job: Job) -> Document:
    """The receipt of a finished answer, if the request asked for one."""
    return {} if job.receipt is None or job.finish_reason is None else {"receipt": job.receipt.document()}


def usage(jobs: Sequence[Job]) -> Document:
    """Tokens of prompts and answers, and forward passes; each prompt counts once, however many answers it has."""
    prompts = sum(len(job.request.prompt_ids) for job in jobs if not job.again)
    written = sum(job.token_count for job in jobs)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": written,
        "total_tokens": prompts + written,
        "passes": sum(job.passes for job in jobs),
    }
