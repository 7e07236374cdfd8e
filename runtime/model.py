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

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, NoReturn, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.arguments import listed, reading
from dpad.runtime.checks import is_integer
from dpad.runtime.decoding.generate import Events, StepEvent, generate
from dpad.runtime.decoding.generation import Collector, Generation, Timings
from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.presets import read_presets, resolve, served
from dpad.runtime.decoding.prompts import Prompt, Prompts, read_batch, read_flag, read_prompt, read_suffix
from dpad.runtime.decoding.request import Request
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import EngineError, InvalidRequest
from dpad.runtime.show import counted, shown
from dpad.runtime.text.codec import TextCodec

OnStep = Callable[[StepEvent], None]
_DROPPED = 2  # how much shorter a tokenizer may make a text: spaces between words, accents apart from their letters


class DiffusionModel:
    """An engine with a tokenizer.

    `generate` and `stream` keep no state between calls: each has its own canvas, cache and
    random generators, so threads may share a model over ONNX Runtime or TensorRT.
    """

    def __init__(self, engine: Engine, codec: TextCodec | None, presets: Mapping[str, Any] | None = None) -> None:
        self.engine = engine
        self._codec = codec
        self.presets = read_presets(presets or {})
        self._closed = False

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
        """Generate for several prompts together; each row gives what it would give alone.

        `on_step` is called with the `StepEvent` of every forward pass.
        """
        if on_step is not None and not callable(on_step):
            raise InvalidRequest(f"on_step {shown(on_step)} cannot be called; give a function of one StepEvent")
        began = perf_counter()
        resolved = self._served(options)
        requests = self._requests(prompts, raw)
        encoded = perf_counter()
        collector = Collector(requests, resolved)
        for event in self._events(requests, resolved):
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
            Generation(text, ids, collector.canvases[row].copy(), commit_steps[row], int(nfe[row]), timings)
            for row, (text, ids) in enumerate(texts)
        ]

    def stream(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """One `StepEvent` a forward pass, for one prompt.

        The last one brings the canvas, which `read` turns into text. Closing the iterator cancels the passes that
        are left.
        """
        return self.stream_batch([prompt], raw=raw, **options)

    def stream_batch(self, prompts: Prompts, *, raw: bool = False, **options: Unpack[Options]) -> Events:
        """One `StepEvent` a forward pass, for several prompts together."""
        resolved = self._served(options)
        return self._events(self._requests(prompts, raw), resolved)

    def _events(self, requests: list[Request], resolved: GenerationOptions) -> Events:
        """Those of `generate`, whose refusals come at once; raises `EngineError` where the model is closed."""
        self._check_open()
        return self._while_open(generate(self.engine, requests, resolved))

    def _while_open(self, events: Events) -> Events:
        try:
            with closing(events):
                for event in events:
                    yield event
                    self._check_open()
        except EngineError:
            self._check_open()  # by another thread in the middle of a step: the engine is not to blame
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"this model over {self.engine.name} is closed; load it again")

    def read(
        self, prompt: Prompt, canvas: NDArray[np.int64], *, raw: bool = False, **options: Unpack[Options]
    ) -> tuple[str, list[int]]:
        """Generated text and token ids of a finished canvas up to EOS, as `Generation` has them.

        `prompt`, `raw` and `options` are those of the call that wrote the canvas.
        """
        request, resolved = self.request(prompt, raw=raw), self._served(options)
        resolved.check(self.engine.contract)
        canvas = _checked_canvas(canvas, request.canvas_length(resolved), self.engine.contract.vocab_size)
        generated = canvas[len(request.prompt_ids) : len(canvas) - len(request.suffix_ids)]
        eos = resolved.ends_of_text(self.engine.contract.eos_token_id)
        ends = np.flatnonzero(np.isin(generated, eos))
        token_ids = generated[: ends[0] if ends.size else None].tolist()
        return self._codec.decode(token_ids) if self._codec else "", token_ids

    def __reduce__(self) -> NoReturn:
        """Raises `InvalidRequest`: an engine is of one process."""
        raise InvalidRequest("a model cannot be pickled or sent to a process; load the bundle in each process")

    def close(self) -> None:
        """Release the engine."""
        self._closed = True
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@reading("a canvas")
def _checked_canvas(canvas: Any, length: int, vocab_size: int) -> NDArray[np.int64]:
    """A canvas to read, [length]; raises `InvalidRequest` for what cannot be one of the request that it is read for."""
    tokens = listed(canvas)
    if tokens is None or not all(map(is_integer, tokens)):
        raise InvalidRequest(f"a canvas is a list of token ids, as StepEvent.canvases holds them, not {shown(canvas)}")
    if len(tokens) != length:
        raise InvalidRequest(
            f"a canvas of {counted(len(tokens), 'token')} is not of this prompt and these options, whose canvas has "
            f"{length}; give those of the call that wrote it"
        )
    if wrong := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InvalidRequest(f"the canvas holds {shown(wrong[0])}, outside the vocabulary of {vocab_size}")
    return np.asarray(tokens, dtype=np.int64)


def tokenizer_directory(bundle_directory: Path) -> Path:
    """Where a bundle keeps its tokenizer files."""
    return bundle_directory / "tokenizer"
