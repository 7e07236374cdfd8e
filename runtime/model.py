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
Events = Generator[StepEvent, None, None]  # a generator, so that a caller may close it before its end
_DROPPED = 2  # a tokenizer may drop half of a text's characters: spaces between words, combining accents


class _Call(NamedTuple):
    """A sequence, and the `perf_counter` times at which its call began and its prompt was encoded."""

    sequence: Sequence
    began: float
    encoded: float


class DiffusionModel:
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
        """Whether the bundle has a tokenizer; without one, prompts and results are token ids only."""
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
        """Resolve keyword arguments; options that they leave out come from `preset`, or from the preset `default`.

        The window of a preset's schedule is cut to a shorter `gen_length`. Unknown names of presets and
        options raise `InvalidRequest`.
        """
        return resolve(self.presets, self.engine.contract, options)

    @reading("an option")
    def _served(self, options: Options) -> GenerationOptions:
        """Resolve as `options` does; the error for a preset that cannot be served names the preset."""
        return served(self.presets, self.engine.contract, options)

    def request(self, prompt: Prompt, *, raw: bool = False, suffix: str | None = None) -> Request:
        """Encode a prompt as token ids.

        Text is wrapped by the chat template, unless `raw` is set or there is no template. `suffix` is the text
        behind the generated text (infill).
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
        """Encode the prompts of a batch as token ids."""
        return [self.request(prompt, raw=raw) for prompt in read_batch(prompts)]

    def check_size(self, *texts: object) -> None:
        """Raise `InvalidRequest` if `texts` together are longer than any canvas could hold.

        It is called before encoding, which would cost time and memory. Values that are not strings are ignored.
        """
        most = self.engine.contract.max_length
        size = sum(str.__len__(text) for text in texts if isinstance(text, str))
        if size > most and size > (limit := _DROPPED * most * self.codec.longest_token):
            raise InvalidRequest(
                f"a text of {size} characters is over the {limit} that this bundle's {most} tokens could hold; "
                "shorten it, or export with a larger --max-length"
            )

    def check(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> None:
        """Raise the error that `generate` would raise for this request, without running any pass."""
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
        """Generate for several prompts together; each gives the tokens that it would give alone.

        `on_step` is called with each prompt's `StepEvent` of every forward pass.
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

    def _calls(self, prompts: Prompts, raw: bool, options: Options) -> list[_Call]:
        """Encode the prompts and check them as sequences, so that a refusal comes before any pass."""
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
        """The event of a pass; the last one holds the text. Raises the error that ended the sequence, if any."""
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


def tokenizer_directory(bundle_directory: Path) -> Path:
    """The folder of a bundle that holds its tokenizer files."""
    return bundle_directory / "tokenizer"
