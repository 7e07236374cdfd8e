"""Reads and checks requests of lm-evaluation-harness, all of them before any is decoded.

    reader = Reader(model, options, truncation=False)
    reader.read(requests, reader.answer)     # InvalidRequest names the first that cannot be served

Requests are the harness's instances, whose `args`, `task_name` and `doc_id` are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from dpad.evaluation.arguments import Wanted
from dpad.evaluation.likelihood import fitted, whole
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel
from dpad.runtime.show import shown

Checked = TypeVar("Checked")


class Answer(NamedTuple):
    """A text to generate: the request's generation arguments, and the options and the `Request` that decode it."""

    wanted: Wanted
    options: GenerationOptions
    row: Request


class Pair(NamedTuple):
    """A likelihood to estimate: the tokens of context and continuation."""

    context: list[int]
    target: list[int]


class Reader:
    """Reads requests for one model.

    Attributes:
        templated: whether a chat template has rendered the contexts, which then contain special tokens.
    """

    def __init__(self, model: DiffusionModel, options: GenerationOptions, truncation: bool) -> None:
        self._model, self._contract = model, model.engine.contract
        self._options, self._truncation = options, truncation
        self.templated = False

    def _encode(self, text: str, behind: int | None = None) -> list[int]:
        """Token ids of a context; to a templated one no special tokens are added.

        With `truncation`, only the last tokens are kept, as many as leave room for `behind` new ones.
        """
        codec = self._model.codec
        encode = codec.encode_rendered if self.templated else codec.encode
        if not self._truncation:
            self._model.check_size(text)
            return encode(text)
        ids = encode(text)
        return ids if behind is None else ids[-(self._contract.max_length - behind) :]

    def read(self, requests: Sequence[Any], kind: Callable[..., Checked]) -> list[Checked]:
        """Read every request; raises `InvalidRequest` for the first that cannot be served, with its number."""
        found = []
        for number, request in enumerate(requests, 1):
            try:
                if len(request.args) != (1 if kind == self.pieces else 2):
                    raise InvalidRequest(f"it has {len(request.args)} parts; images and audio cannot be served")
                if not isinstance(request.args[0], str):
                    raise InvalidRequest(f"a context is text, not {shown(request.args[0])}")
                found.append(kind(*request.args))
            except InvalidRequest as error:
                task = "" if request.task_name is None else f" (task {request.task_name}, document {request.doc_id})"
                raise InvalidRequest(f"request {number} of {len(requests)}{task}: {error}") from error
        return found

    def answer(self, context: str, arguments: dict[str, Any]) -> Answer:
        """Read and check a request of `generate_until`."""
        wanted = Wanted(arguments, self._options.gen_length)
        length = -(-wanted.tokens // self._options.block_length) * self._options.block_length
        options = replace(self._options, **wanted.options, gen_length=length)
        options.check(self._contract)
        row = Request(tuple(self._encode(context, options.gen_length)))
        if (length := row.canvas_length(options)) > self._contract.max_length:
            raise InvalidRequest(
                f"a canvas of {length} tokens ({len(row.prompt_ids)} prompt, {options.gen_length} new) is over this "
                f"bundle's {self._contract.max_length}; shorten the answer (--gen_kwargs max_gen_toks=N) or the "
                "context (model argument truncation=True), or export with a larger --max-length"
            )
        row.check(options, self._contract)
        return Answer(wanted, options, row)

    def pair(self, context: str, continuation: str) -> Pair:
        """Tokens of context and continuation; spaces at the context's end belong to the continuation.

        Both are encoded together and split after the context's tokens. If no token boundary lies there, the
        continuation is encoded separately.
        """
        if not isinstance(continuation, str):
            raise InvalidRequest(f"a continuation is text, not {shown(continuation)}")
        stem = context.rstrip()
        continuation = context[len(stem) :] + continuation
        self._model.check_size(continuation)
        before, together = self._encode(stem), self._encode(stem + continuation)
        split = together[: len(before)] == before and len(together) > len(before)
        target = together[len(before) :] if split else self._model.codec.encode_plain(continuation)
        options = whole(self._contract, self._options, len(target)) if target else self._options
        if self._truncation:
            before = before[-(self._contract.max_length - options.gen_length) :]
        fitted(self._contract, before, target, options)
        return Pair(before, target)

    def pieces(self, text: str) -> list[Pair]:
        """Divide a text of `loglikelihood_rolling` into pieces that fit on a canvas, each after the start tokens."""
        target = self._model.codec.encode_plain(text)
        start = self._model.codec.encode("")  # the tokens that the tokenizer adds before every text
        size = self._contract.max_length - len(start)
        if self._contract.block_causal:
            size -= size % self._options.block_length
        pieces = [Pair(start, target[at : at + size]) for at in range(0, len(target), size)]
        for _, piece in pieces:
            fitted(self._contract, start, piece, whole(self._contract, self._options, len(piece)))
        return pieces
