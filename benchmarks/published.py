"""The baseline: the published decoders in eager PyTorch, with the same steps as the authors' code.

    decoded = decode(model, prompt, Settings(gen_length=1024, mask=5, eos=1))
    decoded.canvas, decoded.nfe

A forward pass computes the logits of every row, the softmax is computed in float64 over the whole vocabulary, and
confident tokens are counted one by one. Batch size is 1, without ONNX or this project's engines. `cache="prefix"` is
Fast-dLLM's prefix cache (arXiv 2505.22618), and `kept` are the suffix positions that DPad keeps for each block
(arXiv 2508.14148), so that two decoders can have the same passes. This is for models that predict a mask in its own row
(LLaDA).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Past = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Settings:
    """Settings of a decode. Without `threshold` a pass commits `block_length` / (steps per block) tokens."""

    gen_length: int
    mask: int
    eos: int
    block_length: int = 32
    steps: int | None = None  # over all blocks; None is one token per pass
    threshold: float | None = None
    cache: str = "none"  # or "prefix", "dual"
    kept: Sequence[Sequence[int]] | None = None  # canvas positions for each block; None keeps the whole suffix
    early_stop: bool = True


@dataclass(frozen=True)
class Decoded:
    """The canvas int64 [N] and the number of forward passes."""

    canvas: torch.Tensor
    nfe: int


class Forward:
    """A forward pass over rows [1, Q] at their positions, optionally after cached keys and values of earlier rows."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, past: Past | None = None
    ) -> tuple[torch.Tensor, Past]:
        """Logits [1, Q, V] of every row, and the rows' keys and values of each layer."""
        made: Past = []

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            made.append((key, value))
            if past is not None:
                key, value = (torch.cat([old, new], dim=1) for old, new in zip(past[layer], (key, value)))
            rows = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
            grouped = query.shape[2] != key.shape[2]
            return F.scaled_dot_product_attention(*rows, enable_gqa=grouped).transpose(1, 2)

        return self.model.logits(self.model(ids, positions, attend)), made


@torch.inference_mode()
def decode(model: Any, prompt: Sequence[int], settings: Settings) -> Decoded:
    """Fill the canvas after `prompt`, block by block."""
    forward, nfe = Forward(model), 0
    canvas = torch.full((1, len(prompt) + settings.gen_length), settings.mask)
    canvas[0, : len(prompt)] = torch.tensor(prompt)
    for block in range(settings.gen_length // settings.block_length):
        start = len(prompt) + block * settings.block_length
        end = start + settings.block_length
        suffix = range(end, canvas.shape[1]) if settings.kept is None else settings.kept[block]
        rows = torch.cat([torch.arange(end), torch.tensor(list(suffix), dtype=torch.int64)])[None]
        nfe += _block(forward, canvas, rows, start, end, settings)
        if settings.early_stop and (canvas[0, start:end] == settings.eos).any():
            canvas[0, end:] = settings.eos
            break
    return Decoded(canvas[0], nfe)


def _block(forward: Forward, canvas: torch.Tensor, rows: torch.Tensor, start: int, end: int, settings: Settings) -> int:
    """Decode canvas positions [start, end) with `rows`, the positions that take part; returns the number of passes."""
    steps = (settings.steps or settings.gen_length) // (settings.gen_length // settings.block_length)
    base, extra = divmod(end - start, steps)
    past: Past | None = None
    first, queries, nfe = 0, rows, 0  # canvas position of the first query that is not cached
    while (canvas[:, start:end] == settings.mask).any():
        logits, made = forward(canvas.gather(1, queries), queries, past)
        if past is None and settings.cache == "prefix":
            past = [(key[:, :start], value[:, :start]) for key, value in made]
            after, queries_after = start, rows[:, start:]
        elif past is None and settings.cache == "dual":
            outside = torch.cat([torch.arange(start), torch.arange(end, rows.shape[1])])
            past = [(key[:, outside], value[:, outside]) for key, value in made]
            after, queries_after = start, rows[:, start:end]
        else:
            after, queries_after = first, queries
        _commit(canvas, logits, slice(start, end), start - first, base + (nfe < extra), settings)
        first, queries, nfe = after, queries_after, nfe + 1
    return nfe


def _commit(
    canvas: torch.Tensor, logits: torch.Tensor, block: slice, offset: int, count: int, settings: Settings
) -> None:
    """Commit masks of `block`, whose first row is row `offset` of the logits."""
    best = logits.argmax(dim=-1)
    probability = F.softmax(logits.to(torch.float64), dim=-1).gather(-1, best[..., None])[..., 0]
    rows = slice(offset, offset + block.stop - block.start)
    masked = canvas[0, block] == settings.mask
    confidence = probability[0, rows].where(masked, -torch.inf)
    left = int(masked.sum())
    chosen = confidence.topk(left if settings.threshold is not None else min(count, left)).indices
    for rank, index in enumerate(chosen.tolist()):
        if rank == 0 or settings.threshold is None or confidence[index] >= settings.threshold:
            canvas[0, block.start + index] = best[0, offset + index]
