"""`/v1/infill`: fills the blanks in a text; the given text comes back exactly.

form = InfillForm(InfillBody(template=["Tom has ", Blank(tokens=4), " books."]))
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpad.runtime.decoding.request import Request
from dpad.runtime.reader import Reader
from dpad.serving.choice import Choice
from dpad.serving.exchange import Document
from dpad.serving.jobs import job_for
from dpad.serving.options import decoding
from dpad.serving.schema import Blank, InfillBody
from dpad.serving.service import Job, Service


@dataclass(frozen=True)
class Layout:
    """A template as tokens: the span from its first blank on, and its blanks as (place in the span, length)."""

    request: Request
    length: int
    block: int
    blanks: tuple[tuple[int, int], ...]


def laid_out(model: Reader, texts: Sequence[str], lengths: Sequence[int], block: int) -> Layout:
    """Lay out `texts` with blanks of `lengths` tokens between them.

    The span has to consist of whole blocks. Missing tokens are taken from the text behind it, then from the text before
    it; if both are too short, masks are added at the end, which are decoded and ignored.
    """
    model.check_size(*texts)
    head, *between, tail = [model.codec.encode(texts[0]), *map(model.codec.encode_plain, texts[1:])]
    span: list[int | None] = []
    blanks = []
    for length, after in zip(lengths, [*between, []]):
        blanks.append((len(span), length))
        span += [*[None] * length, *after]
    block = min(block, len(span))
    lack = -len(span) % block
    span, tail, lack = [*span, *tail[:lack]], tail[lack:], max(0, lack - len(tail))
    moved = min(lack, len(head))
    span = [*head[len(head) - moved :], *span, *[None] * (lack - moved)]
    given = tuple((place, token) for place, token in enumerate(span) if token is not None)
    request = Request(tuple(head[: len(head) - moved]), tuple(tail), given=given)
    return Layout(request, len(span), block, tuple((place + moved, length) for place, length in blanks))


class InfillForm:
    """One request to fill blanks."""

    prefix, whole, part = "infill", "infill", "infill.chunk"

    def __init__(self, body: InfillBody) -> None:
        self.body = body

    @property
    def count(self) -> int:
        """Number of sequences of the request."""
        return self.body.n or 1

    def jobs(self, service: Service) -> list[Job]:
        """One job for each answer, with a choice for each blank."""
        model = service.model
        options = decoding(model, self.body)
        resolved = model.options(**options)
        self._texts, lengths = self._parts(
            resolved.gen_length if self.body.max_tokens is None else self.body.max_tokens
        )
        self._layout = layout = laid_out(model, self._texts, lengths, resolved.block_length)
        options["gen_length"], options["block_length"] = layout.length, layout.block
        model.check(layout.request, **options)
        eos = resolved.ends_of_text(model.facts.contract.eos_token_id)
        jobs = []
        for number in range(self.count):
            start, stop = len(layout.request.prompt_ids), self.body.stop or ()
            choices = tuple(
                Choice(model.codec, eos, number, start=start + place, length=length, most=length, stop=stop)
                for place, length in layout.blanks
            )
            request = replace(layout.request, seed=resolved.seed + number)
            jobs.append(job_for(model, request, options, choices, self.body, again=number > 0))
        return jobs

    def _parts(self, tokens: int) -> tuple[list[str], list[int]]:
        """The texts around the blanks, and the lengths of the blanks."""
        parts = self.body.template
        if parts is None:
            return [self.body.prefix or "", self.body.suffix or ""], [tokens]
        texts, lengths = [""], []
        for part in parts:
            if isinstance(part, Blank):
                lengths.append(part.tokens)
                texts.append("")
            else:
                texts[-1] += part
        return texts, lengths

    def begin(self, job: Job) -> Document | None:
        """The places of the blanks, counted as in the revisions."""
        return {"index": job.choice.index, "blanks": self._layout.blanks, "fills": [], "finish_reason": None}

    def piece(self, job: Job, texts: list[str]) -> Document:
        """Text of the blanks that has become final."""
        fills = [{"blank": number, "text": text} for number, text in enumerate(texts) if text]
        return {"index": job.choice.index, "fills": fills, "finish_reason": job.finish_reason}

    def choice(self, job: Job) -> Document:
        """The whole text, and what was written into each blank."""
        fills = [choice.text for choice in job.choices]
        text = "".join(part + fill for part, fill in zip(self._texts, [*fills, ""]))
        return {"index": job.choice.index, "text": text, "blanks": fills, "finish_reason": job.finish_reason}
