"""`DiffusionModel`: an opened bundle. It takes text, messages or token ids, and returns text and facts about the run.

    model = dpad.load("bundles/tiny")
    result = model.generate("What is 53 + 34?", gen_length=64)
    result.text, result.nfe, result.timings

    for event in model.stream("What is 53 + 34?"):
        event.positions, event.tokens, event.confidences
    event.generation.text
    generation = await model.agenerate("What is 53 + 34?")

Options are the fields of `GenerationOptions` and `preset`, the name of a set of options that the bundle brings.
Unknown names raise `InvalidRequest`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import aclosing, closing
from dataclasses import replace
from itertools import islice
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, Unpack

from dpad.runtime.decoding.event import Generation, StepEvent, Timings
from dpad.runtime.decoding.limits import WAITING, Status
from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.part import Scheduled
from dpad.runtime.decoding.presets import read_presets
from dpad.runtime.decoding.prompts import Prompt, Prompts, read_batch
from dpad.runtime.decoding.scheduler import Outcome, Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.worker import NO_OTHER, Worker
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import EngineError, InvalidRequest, ModelClosed
from dpad.runtime.reader import Facts, Reader
from dpad.runtime.show import shown
from dpad.runtime.text.codec import TextCodec

OnStep = Callable[[StepEvent], None]
Events = Generator[StepEvent, None, None]  # a generator, so that a caller may close it before its end


class Call(NamedTuple):
    """A sequence, and the `perf_counter` times at which its call began and its prompt was encoded."""

    sequence: Sequence
    began: float
    encoded: float


class DiffusionModel(Reader):
    """An engine with a tokenizer.

    Calls share no state: each request has its own canvas, slots and random generators. Threads and tasks may share a
    model; their simultaneous requests run in the same passes.
    """

    def __init__(
        self,
        engine: Engine,
        codec: TextCodec | None,
        presets: Mapping[str, Any] | None = None,
        *,
        max_running: int | None = None,
        max_waiting: int = WAITING,
        digest: str = "",
    ) -> None:
        """`max_running` sequences run together (None: four times what a pass takes), `max_waiting` wait behind them.

        `digest` is the SHA-256 of the bundle's manifest; it names the bundle that decoded a text.
        """
        self.engine = engine
        self._scheduler = Scheduler(engine, max_running, max_waiting)
        most, named = self._scheduler.max_running, read_presets(presets or {})
        super().__init__(Facts(engine.name, engine.contract, engine.slots.most, most, named, digest), codec)
        self._worker = Worker(self._scheduler)
        self._closed = False

    @property
    def status(self) -> Status:
        """How many sequences run and wait, the slots that they hold, and the passes made so far."""
        return self._scheduler.status

    def generate(
        self, prompt: Prompt, *, raw: bool = False, on_step: OnStep | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Generate for one prompt; `options` are the fields of `GenerationOptions`, and `preset`."""
        return self.generate_batch([prompt], raw=raw, on_step=on_step, **options)[0]

    def generate_batch(
        self,
        prompts: Prompts,
        *,
        raw: bool = False,
        on_step: OnStep | None = None,
        **options: Unpack[Options],
    ) -> list[Generation]:
        """Generate for several prompts together; each gives the tokens that it would give alone.

        `on_step` is called with each prompt's `StepEvent` of every forward pass. On a CPU a batch gains little over its
        prompts one by one, because the time of a pass grows with its rows; batches are for GPUs.
        """
        if on_step is not None and not callable(on_step):
            raise InvalidRequest(f"on_step {shown(on_step)} cannot be called; give a function of one StepEvent")
        found: dict[int, Generation] = {}
        with closing(self._events(self._calls(prompts, raw, options), every=on_step is not None)) as events:
            for event in events:
                if event.generation is not None:
                    found[event.index] = event.generation
                if on_step is not None:
                    on_step(event)
        return [found[index] for index in range(len(found))]

    def stream(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """Yield one `StepEvent` per forward pass, for one prompt; the last one holds the `Generation`.

        Closing or dropping the iterator cancels the remaining passes.
        """
        return self.stream_batch([prompt], raw=raw, **options)

    def stream_batch(self, prompts: Prompts, *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """Yield the `StepEvent`s of several prompts as they come; `event.index` is the prompt's index."""
        return self._events(self._calls(prompts, raw, options))

    async def agenerate(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> Generation:
        """Generate as `generate` does, in an event loop; cancelling the task cancels the remaining passes."""
        async with aclosing(self._events_async(prompt, raw, options, every=False)) as events:
            async for event in events:
                if event.generation is not None:
                    return event.generation
        raise EngineError(f"{self.engine.name} ended a sequence without a text")

    async def astream(
        self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]
    ) -> AsyncGenerator[StepEvent, None]:
        """Yield events as `stream` does, in an event loop; cancelling the task cancels the remaining passes."""
        async with aclosing(self._events_async(prompt, raw, options)) as events:
            async for event in events:
                yield event

    def run(self, sequences: Iterable[Scheduled]) -> Generator[Outcome, None, None]:
        """Run the caller's own `sequences`; yield the last outcome of each, errors included, in the order they end.

        It takes as many from `sequences` at a time as may wait. Closing the iterator cancels those that have not ended.
        """
        source = iter(sequences)
        while given := list(islice(source, max(1, self._scheduler.max_waiting))):
            with closing(self._worker.outcomes(given, every=False)) as outcomes:
                yield from outcomes

    def submit(
        self, prompt: Prompt, deliver: Callable[[Call, Outcome], None], *, began: float, **options: Unpack[Options]
    ) -> Call:
        """Queue one sequence, for a caller with an event loop of its own; `withdraw` cancels it.

        `deliver` is called with the outcome of each pass, in the thread that runs the passes, so it must not block;
        `event` reads an outcome. A deadline counts from `began`, a `perf_counter` time. Raises what `generate` raises.
        """
        [call] = self._calls([prompt], False, options, began)
        try:
            self._worker.submit([call.sequence], lambda outcome: deliver(call, outcome))
        except BaseException:
            self.withdraw(call)
            raise
        return call

    def withdraw(self, call: Call) -> None:
        """Cancel a sequence: it takes part in no further pass."""
        self._worker.withdraw([call.sequence])

    def _calls(self, prompts: Prompts, raw: bool, options: Options, began: float | None = None) -> list[Call]:
        """Encode the prompts and check them as sequences, so that a refusal comes before any pass."""
        self.check_open()
        began = perf_counter() if began is None else began
        contract, resolved = self.engine.contract, self._served(options)
        resolved.check(contract)
        requests = [self.request(prompt, raw=raw) for prompt in read_batch(prompts)]
        if not requests:
            raise InvalidRequest("a batch of no prompts cannot be served; give at least one prompt")
        sequences = [Sequence(request, resolved, contract, index, began) for index, request in enumerate(requests)]
        for sequence in sequences:
            self._scheduler.check(sequence)
        return [Call(sequence, began, perf_counter()) for sequence in sequences]

    def _events(self, calls: list[Call], every: bool = True) -> Events:
        with closing(self._worker.outcomes([call.sequence for call in calls], every)) as outcomes:
            for outcome in outcomes:
                yield self.event(calls[outcome.sequence.index], outcome)

    async def _events_async(
        self, prompt: Prompt, raw: bool, options: Options, every: bool = True
    ) -> AsyncGenerator[StepEvent, None]:
        calls = await asyncio.to_thread(self._calls, [prompt], raw, options)  # a long prompt takes its time
        async with aclosing(self._worker.outcomes_async([call.sequence for call in calls], every)) as outcomes:
            async for outcome in outcomes:
                yield self.event(calls[0], outcome)

    def event(self, call: Call, outcome: Outcome) -> StepEvent:
        """The event of a pass; the last one holds the text. Raises the error that ended the sequence, if any."""
        if outcome.error is not None:
            raise outcome.error
        event: StepEvent = outcome.event
        return replace(event, generation=self._generation(call)) if outcome.last else event

    def _generation(self, call: Call) -> Generation:
        sequence, began, encoded = call
        ids, total = sequence.token_ids(), sequence.ended - began
        phases = (encoded - began, sequence.waited, sequence.refresh, sequence.denoise)
        timings = Timings(*phases, loop=total - sum(phases), total=total)
        text = self._codec.decode(ids) if self._codec else ""
        return Generation(
            text, ids, sequence.canvas, sequence.commit_steps, sequence.nfe, timings, sequence.finish_reason
        )

    def check_open(self) -> None:
        """Raise `ModelClosed` if the model is closed."""
        if self._closed:
            raise self._closing()

    def _closing(self) -> ModelClosed:
        return ModelClosed(f"this model over {self.engine.name} is closed; load it again")

    def __reduce__(self) -> NoReturn:
        """Raise `InvalidRequest`: an engine belongs to one process."""
        raise InvalidRequest(NO_OTHER)

    def close(self) -> None:
        """Release the engine. Requests that run or wait end with `ModelClosed`. In a forked process it does nothing."""
        self._closed = True
        if self._worker.is_here:
            self._worker.close(self._closing())
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
