"""`Assembler` batches the parts of several sequences into one step, and splits its outputs into their answers.

    assembler = Assembler(engine)
    outputs = engine.step(assembler.inputs(parts))
    answers = assembler.answers(outputs, parts, seconds)

Sequences of unequal length share arrays. Each keeps its own canvas positions from 0, shorter index rows are padded
with -1, and padding behind a canvas is never gathered. A sequence therefore sees exactly what it would see alone.
Arrays that depend on the views alone are padded once and reused while the same sequences share their passes.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.decoding.part import Answer, Draw, Part, View
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import Sampling, StepInputs, StepOutputs

_KEPT = 64  # combinations of views whose padded arrays are kept, the latest ones
_NO_DRAW, _NO_SLOTS = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)

Padded = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]  # gather, cached, written


class Assembler:
    """Assembles the steps of one engine; pads axes to the sizes that the engine prefers."""

    def __init__(self, engine: Engine) -> None:
        self._padded = engine.padded
        self._views: OrderedDict[tuple[View, ...], Padded] = OrderedDict()

    def inputs(self, parts: Sequence[Part]) -> StepInputs:
        """The inputs of one step for all `parts`, with axes padded to the engine's sizes."""
        views = tuple(part.view for part in parts)
        if views not in self._views:
            self._views[views] = self._pad(views)
            if len(self._views) > _KEPT:
                self._views.popitem(last=False)
        gather, cached, written = self._views[views]
        canvas = joined([part.canvas for part in parts], filler=0)
        count = self._padded("R", max(1, *(len(part.rows) for part in parts)))
        rows = joined([part.rows for part in parts], count, filler=0)
        sampling = _sampling([part.draw for part in parts], count) if any(part.draw for part in parts) else None
        wanted = any(part.want_logits for part in parts)
        return StepInputs(canvas, gather, cached, rows, written, sampling, wanted)

    def answers(self, outputs: StepOutputs, parts: Sequence[Part], seconds: float) -> list[Answer]:
        """The answer for each part, without the padding; `seconds` is the time of the pass."""
        found = []
        for row, part in enumerate(parts):
            here, decided = (row, slice(len(part.rows))), outputs.decisions if part.draw else None
            chosen = decided or outputs
            entropy, margin = (decided.negative_entropy[here], decided.margin[here]) if decided else (None, None)
            logits = outputs.logits[here] if outputs.logits is not None and part.want_logits else None
            found.append(Answer(chosen.token_ids[here], chosen.odds_against[here], entropy, margin, logits, seconds))
        return found

    def _pad(self, views: tuple[View, ...]) -> Padded:
        queries = self._padded("Q", max(len(view.queries) for view in views))
        cached = self._padded("K", max(len(view.cached) for view in views))
        written = None
        if any(view.written is not None for view in views):
            written = joined([_NO_SLOTS if view.written is None else view.written for view in views], queries)
        gather = joined([view.queries for view in views], queries)
        return gather, joined([view.cached for view in views], cached), written


def joined(arrays: Sequence[NDArray[np.int64]], size: int | None = None, filler: int = -1) -> NDArray[np.int64]:
    """Stack `arrays` as rows [B, size], padded with `filler`; `size` None is the length of the longest."""
    size = max(map(len, arrays)) if size is None else size
    if len(arrays) == 1 and len(arrays[0]) == size:
        return arrays[0][None]
    rows = np.full((len(arrays), size), filler, dtype=np.int64)
    for target, array in zip(rows, arrays):
        target[: len(array)] = array
    return rows


def _sampling(draws: Sequence[Draw | None], count: int) -> Sampling:
    """The sampling parameters of all sequences; one without a `Draw` gets the likeliest tokens."""
    given = [draw or Draw(_NO_DRAW) for draw in draws]
    uniform = np.zeros((len(given), count), dtype=np.float32)
    for row, draw in zip(uniform, given):
        row[: len(draw.uniform)] = draw.uniform
    return Sampling(
        uniform,
        np.array([draw.temperature for draw in given], dtype=np.float32),
        np.array([draw.top_k for draw in given], dtype=np.int64),
        np.array([draw.top_p for draw in given], dtype=np.float32),
        np.array([draw.banned for draw in given], dtype=np.int64),
    )
