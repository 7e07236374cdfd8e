"""`StepEvent`: what one forward pass decided for one sequence. The last event holds the whole `Generation`."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timings:
    """Seconds that one sequence spent in each phase.

    `encode` is the time to turn text into tokens. `wait` is the time in the queue and while passes run without the
    sequence. `refresh` and `denoise` are passes in the engine, each counted in full even if other sequences share it.
    `loop` is the rest of `total`. Decoding tokens into text is not counted.
    """

    encode: float
    wait: float
    refresh: float
    denoise: float
    loop: float
    total: float


@dataclass(frozen=True, eq=False)  # arrays compare element by element, so == would raise
class Generation:
    """One finished sequence.

    Attributes:
        text: generated text up to EOS, without special tokens; empty without a tokenizer.
        token_ids: generated tokens up to EOS, EOS excluded; for a request with `given` tokens, every token between
            prompt and suffix.
        canvas: the whole canvas [N]: prompt, generated tokens (EOS-filled; masks where a deadline left them), suffix.
        commit_steps: int64 [gen_length], the forward pass (from 1) that committed each
            generated position; 0 where early termination filled it, or a deadline left it.
        nfe: forward passes this sequence took part in.
        timings: seconds in each phase.
        finish_reason: `stop` if the text ends with EOS, `length` if the canvas was full, or `deadline`.
    """

    text: str
    token_ids: list[int]
    canvas: NDArray[np.int64] = field(repr=False)
    commit_steps: NDArray[np.int64] = field(repr=False)
    nfe: int
    timings: Timings
    finish_reason: str


@dataclass(frozen=True, eq=False)
class StepEvent:
    """The tokens that one forward pass committed, or that a deadline filled in.

    The arrays are parallel, with one entry per committed token, and read-only.

    Attributes:
        index: index of the prompt in the call.
        block, step: index of the block, and of the step within it (0 is the refresh; in block-causal models
            the pass that adds finished blocks to the cache).
        nfe: forward passes of this sequence so far.
        positions, tokens, confidences: canvas position, token id and probability of every token committed now.
        finished: whether the text is complete after this step.
        engine_seconds: time of the pass inside the engine.
        generation: the whole sequence, in its last event; None in the others.
    """

    index: int
    block: int
    step: int
    nfe: int
    positions: NDArray[np.int64]
    tokens: NDArray[np.int64]
    confidences: NDArray[np.float64]
    finished: bool
    engine_seconds: float
    generation: Generation | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arrays as bytes: for arrays of a few elements that takes a fifth of the time."""
        arrays = (self.positions.tobytes(), self.tokens.tobytes(), self.confidences.tobytes())
        others = (self.finished, self.engine_seconds, self.generation)
        return _unpickled, (self.index, self.block, self.step, self.nfe, *arrays, *others)


def _unpickled(
    index: int, block: int, step: int, nfe: int, positions: bytes, tokens: bytes, confidences: bytes, *others: Any
) -> StepEvent:
    arrays = (np.frombuffer(positions, np.int64), np.frombuffer(tokens, np.int64), np.frombuffer(confidences))
    return StepEvent(index, block, step, nfe, *arrays, *others)
