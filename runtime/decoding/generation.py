"""`Generation`: what a finished sequence is, and how the events of a batch add up to it.

collector = Collector(requests, options)
for event in generate(engine, requests, options):
    collector.add(event)
nfe, commit_steps = collector.totals()
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.generate import StepEvent
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request


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
    canvas: NDArray[np.int64] = field(repr=False)
    commit_steps: NDArray[np.int64] = field(repr=False)
    nfe: int
    timings: Timings


class Collector:
    """Adds up the events of one batch."""

    def __init__(self, requests: list[Request], options: GenerationOptions) -> None:
        self.requests = requests
        self.canvases: dict[int, NDArray[np.int64]] = {}
        self.refresh = self.denoise = 0.0
        self._gen_length = options.gen_length
        self._events: list[StepEvent] = []

    def add(self, event: StepEvent) -> None:
        """Count one more, in order."""
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
