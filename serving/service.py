"""`Service`: a model behind an API. It admits requests and runs their sequences.

    service = Service(model, Settings("tiny"))
    with service.hold(2):
        await service.run(jobs, emit)

If one sequence of a request is cancelled or fails, the request's other sequences are cancelled too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from time import time

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.request import Request
from dpad.serving.admission import Admission
from dpad.serving.choice import Choice
from dpad.serving.health import Health
from dpad.serving.metrics import Metrics
from dpad.serving.receipt import Receipt
from dpad.serving.remote_model import Model
from dpad.serving.settings import Settings

Emit = Callable[["Job", StepEvent, list[str]], Awaitable[None]]


@dataclass(frozen=True, eq=False)
class Job:
    """One sequence of a request: its tokens, its options and its answer.

    `choices` are its texts: one, or one for each blank of a template. `again` says that another job answers the same
    prompt, whose tokens the usage counts once.
    """

    request: Request
    options: Options
    choices: tuple[Choice, ...]
    receipt: Receipt | None = None
    again: bool = False
    _passes: list[int] = field(default_factory=lambda: [0])

    def take(self, event: StepEvent) -> list[str]:
        """Add the event of a pass; returns the text of each choice that has become final."""
        self._passes[0] = event.nfe
        if self.receipt is not None:
            self.receipt.add(event)
        return [choice.take(event) for choice in self.choices]

    @property
    def choice(self) -> Choice:
        """The only choice, or the first."""
        return self.choices[0]

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self._passes[0]

    @property
    def token_count(self) -> int:
        """Tokens of the final texts."""
        return sum(choice.token_count for choice in self.choices)

    @property
    def finish_reason(self) -> str | None:
        """None while a choice is unfinished; then `deadline`, `length` or `stop`, the first that a choice has."""
        reasons = [choice.finish_reason for choice in self.choices]
        return None if None in reasons else next(each for each in ("deadline", "length", "stop") if each in reasons)

    def text_of(self, ids: Sequence[int]) -> str:
        """Decode token ids."""
        return self.choice.codec.decode(ids)


class Service:
    """One model, under the name by which clients call it."""

    def __init__(self, model: Model, settings: Settings) -> None:
        """The queue of `model` has to be longer than the one of `settings`, so that only the admission refuses.

        A sequence whose client has left keeps its seat in the engine until its pass has ended.
        """
        self.model, self.name, self.created = model, settings.name, int(time())
        self.admission = Admission(model.facts.max_running + settings.max_waiting)
        self.metrics, self.health = Metrics(model), Health(model, self.admission, settings.patience_seconds)

    def hold(self, count: int) -> AbstractContextManager[None]:
        """Hold room for `count` sequences; raises `ApiError` if there is no room or no engine."""
        self.model.check_open()
        return self.admission.hold(count)

    async def run(self, jobs: Sequence[Job], emit: Emit) -> None:
        """Decode `jobs` together; `emit` is called after each pass, with the texts that have become final."""
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(self._decode(job, emit))
        except BaseExceptionGroup as several:
            error = _first(several)
            raise error from error.__cause__

    async def _decode(self, job: Job, emit: Emit) -> None:
        with self.metrics.sequence() as told:
            async with aclosing(self.model.astream(job.request, **job.options)) as events:
                async for event in events:
                    told.take(event)
                    await emit(job, event, job.take(event))
                    if job.finish_reason is not None:
                        break
            told.reason = job.finish_reason or "error"


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of a group, because of which the other tasks were cancelled."""
    error = several.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
