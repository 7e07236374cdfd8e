"""`DiffusionModel`: what a service holds. Text, messages or token ids in; text and facts out.

    model = dpad.load("bundles/tiny")
    result = model.generate("What is 53 + 34?", gen_length=64)
    result.text, result.nfe, result.timings

    for event in model.stream("What is 53 + 34?"):
        event.positions, event.tokens, event.confidences
        texts = [model.read("What is 53 + 34?", canvas) for canvas in event.canvases]

Options are `preset`, the name of some that the bundle brings, and the fields of `GenerationOptions`.
Names it does not know are an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeGuard, Unpack

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.chat_template import Message
from dpad.runtime.checks import is_integer
from dpad.runtime.engine import Engine
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.generate import Events, StepEvent, generate
from dpad.runtime.options import GenerationOptions, Options
from dpad.runtime.presets import read_presets, resolve
from dpad.runtime.request import Request
from dpad.runtime.text import TextCodec

OnStep = Callable[[StepEvent], None]
Prompt = str | Sequence[int] | Sequence[Message] | Request
_DROPPED = 2  # how much shorter a tokenizer may make a text: spaces between words, accents apart from their letters
_PROMPT = "a prompt is text, a list of chat messages, a list of token ids, or a Request"


@dataclass(frozen=True)
class Timings:
    """Seconds a phase: `encode` text, `refresh` and `denoise` inside the engine, `loop` around it.

    What a caller's `on_step` takes counts as `loop`; turning tokens into text again counts nowhere.
    """

    encode: float
    refresh: float
    denoise: float
    loop: float
    total: float


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Generation:
    """One finished sequence.

    Attributes:
        text: generated text up to EOS, without special tokens; empty without a tokenizer.
        token_ids: generated tokens up to EOS, EOS excluded.
        canvas: the whole canvas [N]: prompt, generated tokens (EOS-filled), suffix.
        commit_steps: int64 [gen_length], the forward pass (from 1) that committed each
            generated position; 0 where early termination filled it.
        nfe: forward passes this sequence took part in.
        timings: of the batch it was generated in.
    """

    text: str
    token_ids: list[int]
    canvas: NDArray[np.int64]
    commit_steps: NDArray[np.int64]
    nfe: int
    timings: Timings


class DiffusionModel:
    """An engine with a tokenizer.

    `generate` and `stream` keep no state between calls: each has its own canvas, cache and
    random generators, so threads may share a model over ONNX Runtime or TensorRT.
    """

    def __init__(self, engine: Engine, codec: TextCodec | None, presets: Mapping[str, Any] | None = None) -> None:
        self.engine = engine
        self._codec = codec
        self.presets = read_presets(presets or {})

    @property
    def codec(self) -> TextCodec:
        """The tokenizer; raises `InvalidRequest` if the checkpoint came without one."""
        if self._codec is None:
            raise InvalidRequest("this bundle has no tokenizer; pass token ids and read `token_ids`")
        return self._codec

    def options(self, **options: Unpack[Options]) -> GenerationOptions:
        """Options from keyword arguments over those of their `preset`, else over the bundle's preset `default`.

        The window of a preset's schedule is cut to a shorter `gen_length`. Unknown names of presets and
        options raise `InvalidRequest`.
        """
        return resolve(self.presets, self.engine.contract, options)

    def request(self, prompt: Prompt, *, raw: bool = False, suffix: str | None = None) -> Request:
        """A prompt as token ids.

        Text is wrapped by the chat template unless `raw` or there is none. `suffix` is text
        that stands behind the generated text (infill).
        """
        if isinstance(prompt, Request):
            if suffix:
                raise InvalidRequest("a Request holds its own suffix_ids; leave suffix out")
            return prompt
        self.check_size(prompt, suffix)
        if isinstance(prompt, str):
            chat = self.codec.has_chat_template and not raw
            messages = [{"role": "user", "content": prompt}]
            ids = self.codec.encode_chat(messages, self.check_size) if chat else self.codec.encode(prompt)
        elif not _is_list(prompt):
            raise InvalidRequest(f"{_PROMPT}, not {type(prompt).__name__}")
        elif _is_chat(prompt):
            self.check_size(*(part for message in prompt for part in message.values()))
            ids = self.codec.encode_chat(prompt, self.check_size)
        elif _is_ids(prompt):
            ids = [int(part) for part in prompt]
        else:
            raise InvalidRequest(_PROMPT)
        return Request(tuple(ids), tuple(self.codec.encode_plain(suffix)) if suffix else ())

    def _requests(self, prompts: Sequence[Prompt], raw: bool) -> list[Request]:
        """The prompts of a batch as token ids."""
        if not _is_list(prompts):
            raise InvalidRequest(
                f"a batch is a list of prompts, not {type(prompts).__name__}; for one prompt use generate or stream"
            )
        return [self.request(prompt, raw=raw) for prompt in prompts]

    def check_size(self, *texts: object) -> None:
        """Raise `InvalidRequest` for text that no canvas could hold, before time and memory go into its tokens.

        What is no text among `texts` does not count.
        """
        most = self.engine.contract.max_length
        size = sum(len(text) for text in texts if isinstance(text, str))
        if size > most and size > (limit := _DROPPED * most * self.codec.longest_token):
            raise InvalidRequest(
                f"a text of {size} characters is over the {limit} that this bundle's {most} tokens could hold; "
                "shorten it, or export with a larger --max-length"
            )

    def generate(
        self, prompt: Prompt, *, raw: bool = False, on_step: OnStep | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Generate for one prompt; `options` are the fields of `GenerationOptions`, and `preset`."""
        return self.generate_batch([prompt], raw=raw, on_step=on_step, **options)[0]

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        raw: bool = False,
        on_step: OnStep | None = None,
        **options: Unpack[Options],
    ) -> list[Generation]:
        """Generate for several prompts together; each row gives what it would give alone.

        `on_step` is called with the `StepEvent` of every forward pass.
        """
        if on_step is not None and not callable(on_step):
            raise InvalidRequest(f"on_step {on_step!r} cannot be called; give a function of one StepEvent")
        began = perf_counter()
        resolved = self.options(**options)
        requests = self._requests(prompts, raw)
        encoded = perf_counter()
        collector = _Collector(requests, resolved)
        for event in generate(self.engine, requests, resolved):
            collector.add(event)
            if on_step is not None:
                on_step(event)
        nfe, commit_steps = collector.totals()
        ended = perf_counter()
        engine = collector.refresh + collector.denoise
        timings = Timings(
            encoded - began, collector.refresh, collector.denoise, ended - encoded - engine, ended - began
        )
        texts = [self.read(request, collector.canvases[row], **options) for row, request in enumerate(requests)]
        return [
            Generation(text, ids, collector.canvases[row], commit_steps[row], int(nfe[row]), timings)
            for row, (text, ids) in enumerate(texts)
        ]

    def stream(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """One `StepEvent` a forward pass, for one prompt.

        The last one brings the canvas, which `read` turns into text. Closing the iterator cancels the passes that
        are left.
        """
        return self.stream_batch([prompt], raw=raw, **options)

    def stream_batch(self, prompts: Sequence[Prompt], *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """One `StepEvent` a forward pass, for several prompts together."""
        resolved = self.options(**options)
        return generate(self.engine, self._requests(prompts, raw), resolved)

    def read(
        self, prompt: Prompt, canvas: NDArray[np.int64], *, raw: bool = False, **options: Unpack[Options]
    ) -> tuple[str, list[int]]:
        """Generated text and token ids of a finished canvas up to EOS, as `Generation` has them.

        `prompt`, `raw` and `options` are those of the call that wrote the canvas.
        """
        request = self.request(prompt, raw=raw)
        generated = canvas[len(request.prompt_ids) : len(canvas) - len(request.suffix_ids)]
        eos = self.options(**options).ends_of_text(self.engine.contract.eos_token_id)
        ends = np.flatnonzero(np.isin(generated, eos))
        token_ids = generated[: ends[0] if ends.size else None].tolist()
        return self._codec.decode(token_ids) if self._codec else "", token_ids

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """Adds up the events of one batch."""

    def __init__(self, requests: list[Request], options: GenerationOptions) -> None:
        self.requests = requests
        self.canvases: dict[int, NDArray[np.int64]] = {}
        self.refresh = self.denoise = 0.0
        self._gen_length = options.gen_length
        self._events: list[StepEvent] = []

    def add(self, event: StepEvent) -> None:
        self._events.append(event)
        if event.finished:
            self.canvases.update(zip(event.finished, event.canvases))
        if event.step == 0:
            self.refresh += event.engine_seconds
        else:
            self.denoise += event.engine_seconds

    def totals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Forward passes of each row [B], and the pass that committed each new position [B, gen_length]."""
        nfe = np.zeros(len(self.requests), dtype=np.int64)
        commit_steps = np.zeros((len(self.requests), self._gen_length), dtype=np.int64)
        starts = np.array([len(request.prompt_ids) for request in self.requests])
        for event in self._events:  # after the last step: between steps the same takes several times as long
            nfe[event.active] += 1
            commit_steps[event.rows, event.positions - starts[event.rows]] = nfe[event.rows]
        return nfe, commit_steps


def _is_list(value: object) -> bool:
    """Whether `value` has an order and may be read twice; text and bytes are values of their own."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _is_chat(prompt: Sequence[object]) -> TypeGuard[Sequence[Message]]:
    return len(prompt) > 0 and all(isinstance(part, Mapping) for part in prompt)


def _is_ids(prompt: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return all(map(is_integer, prompt))


def tokenizer_directory(bundle_directory: Path) -> Path:
    """Where a bundle keeps its tokenizer files."""
    return bundle_directory / "tokenizer"
