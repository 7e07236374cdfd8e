"""`DiffusionModel`: what a service holds. Text, messages or token ids in; text and facts out.

    model = dpad.load("bundles/tiny")
    result = model.generate("What is 53 + 34?", gen_length=64)
    result.text, result.nfe, result.timings

    for event in model.stream("What is 53 + 34?"):
        event.positions, event.tokens, event.confidences
    event.generation.text
    generation = await model.agenerate("What is 53 + 34?")

Options are `preset`, the name of some that the bundle brings, and the fields of `GenerationOptions`.
Names it does not know are an error.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import aclosing, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, Unpack

from dpad.runtime.arguments import reading
from dpad.runtime.decoding.event import Generation, StepEvent, Timings
from dpad.runtime.decoding.limits import WAITING, Status
from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.part import Scheduled
from dpad.runtime.decoding.presets import read_presets, resolve, served
from dpad.runtime.decoding.prompts import Prompt, Prompts, read_batch, read_flag, read_prompt, read_suffix
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import Outcome, Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.worker import NO_OTHER, Worker
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import EngineError, InvalidRequest, ModelClosed
from dpad.runtime.show import shown
from dpad.runtime.text.codec import TextCodec

OnStep = Callable[[StepEvent], None]
Events = Generator[StepEvent, None, None]  # what may be closed before its end
_DROPPED = 2  # how much shorter a tokenizer may make a text: spaces between words, accents apart from their letters


class _Call(NamedTuple):
    """A sequence, and when its call began and had its tokens, by `perf_counter`."""

    sequence: Sequence
    began: float
    encoded: float


class DiffusionModel:
    """An engine with a tokenizer.

    Calls keep nothing from each other: each request has its own canvas, slots and random generators. Threads and tasks
    may share a model, and what they ask for at the same time runs in the same passes.
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
        """`max_running` sequences run together (None: four times what a pass takes), `max_waiting` wait.

        `digest` is that of the bundle's manifest, for who wants to name what was decoded with.
        """
        self.engine, self.digest = engine, digest
        self._scheduler = Scheduler(engine, max_running, max_waiting)
        self.max_running, self.max_waiting = self._scheduler.max_running, self._scheduler.max_waiting
        self._worker = Worker(self._scheduler)
        self._codec = codec
        self.presets = read_presets(presets or {})
        self._closed = False

    @property
    def status(self) -> Status:
        """How many sequences run and wait, the slots that they hold, and the passes made so far."""
        return self._scheduler.status

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is text at all: without, prompts and results are token ids."""
        return self._codec is not None

    @property
    def codec(self) -> TextCodec:
        """The tokenizer; raises `InvalidRequest` if the checkpoint came without one."""
        if self._codec is None:
            raise InvalidRequest(
                "this bundle has no tokenizer; pass token ids (to dpad generate as --ids) and read `token_ids`"
            )
        return self._codec

    @reading("an option")
    def options(self, **options: Unpack[Options]) -> GenerationOptions:
        """Options from keyword arguments over those of their `preset`, else over the bundle's preset `default`.

        The window of a preset's schedule is cut to a shorter `gen_length`. Unknown names of presets and
        options raise `InvalidRequest`.
        """
        return resolve(self.presets, self.engine.contract, options)

    @reading("an option")
    def _served(self, options: Options) -> GenerationOptions:
        """As `options`, for a call: a preset that cannot be served is named."""
        return served(self.presets, self.engine.contract, options)

    def request(self, prompt: Prompt, *, raw: bool = False, suffix: str | None = None) -> Request:
        """A prompt as token ids.

        Text is wrapped by the chat template unless `raw` or there is none. `suffix` is text
        that stands behind the generated text (infill).
        """
        given, behind, raw = read_prompt(prompt), read_suffix(suffix), read_flag(raw)
        if isinstance(given, Request):
            if behind:
                raise InvalidRequest("a Request holds its own suffix_ids; leave suffix out")
            return given
        self.check_size(given, behind)
        if isinstance(given, str):
            chat = self.codec.has_chat_template and not raw
            messages = [{"role": "user", "content": given}]
            ids = self.codec.encode_chat(messages, self.check_size) if chat else self.codec.encode(given)
        elif given and isinstance(given[0], dict):
            self.check_size(*(part for message in given for part in message.values()))
            ids = self.codec.encode_chat(given, self.check_size)
        else:
            ids = given
        return Request(tuple(ids), tuple(self.codec.encode_plain(behind)) if behind else ())

    def _requests(self, prompts: Prompts, raw: bool) -> list[Request]:
        """The prompts of a batch as token ids."""
        return [self.request(prompt, raw=raw) for prompt in read_batch(prompts)]

    def check_size(self, *texts: object) -> None:
        """Raise `InvalidRequest` for text that no canvas could hold, before time and memory go into its tokens.

        What is no text among `texts` does not count.
        """
        most = self.engine.contract.max_length
        size = sum(str.__len__(text) for text in texts if isinstance(text, str))
        if size > most and size > (limit := _DROPPED * most * self.codec.longest_token):
            raise InvalidRequest(
                f"a text of {size} characters is over the {limit} that this bundle's {most} tokens could hold; "
                "shorten it, or export with a larger --max-length"
            )

    def check(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> None:
        """Raise what `generate` would refuse this with, before any work is done."""
        self._calls([prompt], raw, options)

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
        """Generate for several prompts together; each gives what it would give alone.

        `on_step` is called with the `StepEvent` of every forward pass of each.
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
        """One `StepEvent` a forward pass, for one prompt; the last one brings the `Generation`.

        Closing the iterator, or dropping it, cancels the passes that are left.
        """
        return self.stream_batch([prompt], raw=raw, **options)

    def stream_batch(self, prompts: Prompts, *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """The `StepEvent`s of several prompts as they come; `index` says of which."""
        return self._events(self._calls(prompts, raw, options))

    async def agenerate(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> Generation:
        """As `generate`, in an event loop; cancelling the task cancels the passes that are left."""
        async with aclosing(self._events_async(prompt, raw, options, every=False)) as events:
            async for event in events:
                if event.generation is not None:
                    return event.generation
        raise EngineError(f"{self.engine.name} ended a sequence without a text")

    async def astream(
        self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]
    ) -> AsyncGenerator[StepEvent, None]:
        """As `stream`, in an event loop; cancelling the task cancels the passes that are left."""
        async with aclosing(self._events_async(prompt, raw, options)) as events:
            async for event in events:
                yield event

    def run(self, sequences: Iterable[Scheduled]) -> Generator[Outcome, None, None]:
        """How each of the caller's own `sequences` ends, an error too, in the order of their ends.

        They are taken from `sequences` as many at a time as may wait. Closing the iterator cancels those that are left.
        """
        source = iter(sequences)
        while given := list(islice(source, max(1, self._scheduler.max_waiting))):
            with closing(self._worker.outcomes(given, every=False)) as outcomes:
                yield from outcomes

    def _calls(self, prompts: Prompts, raw: bool, options: Options) -> list[_Call]:
        """The prompts as sequences, checked: refusals come before any work."""
        self._check_open()
        began = perf_counter()
        contract, resolved = self.engine.contract, self._served(options)
        resolved.check(contract)
        requests = self._requests(prompts, raw)
        if not requests:
            raise InvalidRequest("a batch of no prompts cannot be served; give at least one prompt")
        sequences = [Sequence(request, resolved, contract, index, began) for index, request in enumerate(requests)]
        for sequence in sequences:
            self._scheduler.check(sequence)
        return [_Call(sequence, began, perf_counter()) for sequence in sequences]

    def _events(self, calls: list[_Call], every: bool = True) -> Events:
        with closing(self._worker.outcomes([call.sequence for call in calls], every)) as outcomes:
            for outcome in outcomes:
                yield self._event(calls[outcome.sequence.index], outcome)

    async def _events_async(
        self, prompt: Prompt, raw: bool, options: Options, every: bool = True
    ) -> AsyncGenerator[StepEvent, None]:
        calls = await asyncio.to_thread(self._calls, [prompt], raw, options)  # a long prompt takes its time
        async with aclosing(self._worker.outcomes_async([call.sequence for call in calls], every)) as outcomes:
            async for outcome in outcomes:
                yield self._event(calls[0], outcome)

    def _event(self, call: _Call, outcome: Outcome) -> StepEvent:
        """The event of a pass, with the text where it was the last; raises what ended the sequence."""
        if outcome.error is not None:
            raise outcome.error
        event: StepEvent = outcome.event
        return replace(event, generation=self._generation(call)) if outcome.last else event

    def _generation(self, call: _Call) -> Generation:
        sequence, began, encoded = call
        ids, total = sequence.token_ids(), sequence.ended - began
        phases = (encoded - began, sequence.waited, sequence.refresh, sequence.denoise)
        timings = Timings(*phases, loop=total - sum(phases), total=total)
        text = self._codec.decode(ids) if self._codec else ""
        return Generation(
            text, ids, sequence.canvas, sequence.commit_steps, sequence.nfe, timings, sequence.finish_reason
        )

    def _check_open(self) -> None:
        if self._closed:
            raise self._closing()

    def _closing(self) -> ModelClosed:
        return ModelClosed(f"this model over {self.engine.name} is closed; load it again")

    def __reduce__(self) -> NoReturn:
        """Raises `InvalidRequest`: an engine is of one process."""
        raise InvalidRequest(NO_OTHER)

    def close(self) -> None:
        """Release the engine. Requests that run or wait end with `ModelClosed`. A forked process leaves it alone."""
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


def tokenizer_directory(bundle_directory: Path) -> Path:
    """Where a bundle keeps its tokenizer files."""
    return bundle_directory / "tokenizer"
