"""Draws the canvas of one request as it fills in (`dpad generate --show-steps`)."""

from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.show import escaped
from dpad.runtime.text.codec import TextCodec

_MASK, _EOS = "░", "·"


class CanvasView:
    """A live view on a terminal; elsewhere one line per forward pass. As a context manager it hides the cursor."""

    def __init__(self, codec: TextCodec | None, request: Request, options: GenerationOptions, eos: int) -> None:
        self._codec = codec
        self._eos = options.ends_of_text(eos)
        self._start = len(request.prompt_ids)
        self._blocks = options.blocks
        self._pieces: list[str | None] = [None] * options.gen_length
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the live view: the last picture stays on the screen, and the cursor is restored."""
        if self._live.is_started:
            self._live.stop()

    def update(self, event: StepEvent) -> None:
        """Show the tokens that `event` committed."""
        fresh = [position - self._start for position in event.positions.tolist()]
        for index, token in zip(fresh, event.tokens.tolist()):
            self._pieces[index] = _EOS if token in self._eos else self._text(token)
        self._blocks = max(self._blocks, event.block + 1)  # there is one more if a block holds the end of the prompt
        head = f"block {event.block + 1}/{self._blocks} step {event.step + 1} pass {event.nfe}"
        if self._live.is_started:
            self._live.update(Text(head + "\n", style="dim") + self._canvas(set(fresh)), refresh=True)
        else:
            committed = " ".join(f"{i}:{self._pieces[i]!r}" for i in fresh)
            self._console.print(f"{head}: {committed}", soft_wrap=True, markup=False)

    def _text(self, token: int) -> str:
        """One token as text that is safe for a terminal; without a tokenizer its id."""
        return escaped(self._codec.token_text(token), lines=True) if self._codec else f"{token} "

    def _canvas(self, fresh: set[int]) -> Text:
        text = Text()
        for index, piece in enumerate(self._pieces):
            text.append(
                _MASK if piece is None else piece, "dim" if piece is None else "bold green" if index in fresh else ""
            )
        return text
