"""`Choice`: the text of one answer while it is decoded: which part is final, and why it ended.

    choice = Choice(model.codec, eos, 0, start=9, length=64, most=60, stop=["###"])
    choice.take(event)              # the text that has become final with this pass
    choice.finish_reason            # None while it is unfinished

Diffusion commits tokens in any order. A token is final when all tokens before it are committed. Text is final when
later tokens cannot change it: it must not end within a character, or with what may become a stop sequence.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.text.codec import TextCodec

_HALF = "\ufffd"  # the tokenizer decodes an incomplete character to this
_UNDECIDED = -1
_NEAR = 8  # preceding tokens that a token's text may depend on
_LEAST = 1e-300  # least probability, so that the logarithm is finite


class Token(NamedTuple):
    """A final token: its text, the logarithm of its probability, and where in the choice's text it begins."""

    text: str
    logprob: float
    offset: int


class Choice:
    """The text of the answer number `index` of a request, or of one of its blanks."""

    def __init__(
        self,
        codec: TextCodec,
        eos: Collection[int],
        index: int,
        *,
        start: int,
        length: int,
        most: int,
        stop: Sequence[str] = (),
    ) -> None:
        """The text begins at canvas position `start`, spans `length` positions, and has at most `most` tokens."""
        self.index = index
        self.codec, self._eos, self._start, self._most, self._stop = codec, frozenset(eos), start, most, stop
        self._length, self._tokens, self._confidences = length, [_UNDECIDED] * length, [0.0] * length
        self._ids: list[int] = []
        self.text = ""  # the final text returned so far
        self.finish_reason: str | None = None
        self._told = self._offset = 0  # tokens that `news` has returned, and the offset of the next one
        self._read, self._window = "", (0, 0)  # text of the tokens before the second number, begun with the first

    @property
    def token_count(self) -> int:
        """Tokens of the final text."""
        return len(self._ids)

    def take(self, event: StepEvent) -> str:
        """Add the event of a pass; returns the text that has become final, and with the last event all the rest."""
        if self.finish_reason is not None:
            return ""
        for position, token, sure in zip(event.positions.tolist(), event.tokens.tolist(), event.confidences.tolist()):
            if 0 <= (place := position - self._start) < len(self._tokens):
                self._tokens[place], self._confidences[place] = token, sure
        before = len(self._ids)
        self._advance()
        if self.finish_reason is None and event.generation is not None:
            self._close()
        return self._settle(self._stopped(self._decoded(), before))

    def _decoded(self) -> str:
        """The text of the final tokens. Only the last few are decoded again, so the cost does not grow with it."""
        if self.finish_reason is not None:
            return self.codec.decode(self._ids)
        first, read = self._window
        known, text = self.codec.decode(self._ids[first:read]), self.codec.decode(self._ids[first:])
        if not text.startswith(known):  # a decoder that changes what it wrote
            return self._read
        if text.endswith(_HALF):
            return self._read + text[len(known) :]
        if read < len(self._ids):
            self._read, self._window = self._read + text[len(known) :], (read, len(self._ids))
        return self._read

    def _advance(self) -> None:
        """Make final the committed tokens that directly follow the final ones."""
        while self.finish_reason is None and (place := len(self._ids)) < len(self._tokens):
            token = self._tokens[place]
            if token == _UNDECIDED:
                return
            if token in self._eos:
                self.finish_reason = "stop"
                return
            self._ids.append(token)
            if len(self._ids) == self._most:
                self.finish_reason = "length"

    def _close(self) -> None:
        """End after the last pass; positions that a deadline left as masks are left out."""
        decided = [place for place, token in enumerate(self._tokens) if token != _UNDECIDED]
        self._tokens = [self._tokens[place] for place in decided]
        self._confidences = [self._confidences[place] for place in decided]
        self._advance()
        self.finish_reason = self.finish_reason or ("length" if len(decided) == self._length else "deadline")

    def _stopped(self, text: str, before: int) -> str:
        """Cut `text`, and the tokens, at the first stop sequence; the first `before` tokens contain none."""
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if not places:
            return text
        self.finish_reason, cut = "stop", min(places)
        while len(self._ids) > before + 1 and any(stop in self.codec.decode(self._ids[:-1]) for stop in self._stop):
            self._ids.pop()
        return text[:cut]

    def _settle(self, text: str) -> str:
        """The part of `text` that is new and final."""
        keep = len(text)
        if self.finish_reason is None:
            keep = len(text.rstrip(_HALF))
            keep -= max((_begun(text[:keep], stop) for stop in self._stop), default=0)
            if keep < len(self.text) or not text.startswith(self.text):  # a decoder that changes what it wrote
                return ""
        fresh = text[len(self.text) : keep]
        self.text = text[:keep]
        return fresh

    def news(self) -> list[Token]:
        """The final tokens that no earlier call returned."""
        first, self._told = self._told, len(self._ids)
        fresh = []
        for place in range(first, self._told):
            logprob = math.log(max(self._confidences[place], _LEAST))
            fresh.append(Token(self.codec.token_text(self._ids[place]), logprob, self._offset))
            near = self._ids[max(0, place - _NEAR) : place + 1]
            self._offset += len(self.codec.decode(near)) - len(self.codec.decode(near[:-1]))
        return fresh


def _begun(text: str, stop: str) -> int:
    """Number of characters at the end of `text` that may become `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
