"""`StepEvent`: what one forward pass decided for one sequence; the last one brings the whole `Generation`."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timings:
    """Seconds of one sequence, a phase each.

    `encode` is text to tokens; `wait` for its turn, in the queue and while passes run without it; `refresh` and
    `denoise` are passes in the engine, each as long as the pass was, whoever shared it; `loop` is all else. Turning
    tokens into text again counts nowhere.
    """

    encode: float
    wait: float
    refresh: float
    denoise: float
    loop: float
    total: float


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Generation:
    """One finished sequence.

    Attributes:
        text: generated text up to EOS, without special tokens; empty without a tokenizer.
        token_ids: generated tokens up to EOS, EOS excluded; with `given` tokens all of them, theirs and the blanks'.
        canvas: the whole canvas [N]: prompt, generated tokens (EOS-filled; masks where a deadline left them), suffix.
        commit_steps: int64 [gen_length], the forward pass (from 1) that committed each
            generated position; 0 where early termination filled it, or a deadline left it.
        nfe: forward passes this sequence took part in.
        timings: of this sequence.
        finish_reason: `stop` where the text ends with EOS, `length` where the canvas was too short, or `deadline`.
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
    """What one forward pass decided, or a deadline after it.

    The arrays are parallel, one entry a committed token, and can only be read.

    Attributes:
        index: of the prompt in the call.
        block, step: index of the block, and of the step within it (0 is the refresh; in block-causal models
            the pass that adds finished blocks to the cache).
        nfe: forward passes of this sequence so far.
        positions, tokens, confidences: canvas position, token and its probability, for every token committed now.
        finished: whether the text is complete with this step.
        engine_seconds: time of the pass inside the engine.
        generation: the whole sequence, with its last event.
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
