"""Training batches: the rows of each sample, which of them are masked, and their weights in the loss.

The objective is LLaDA's supervised one (arXiv 2502.09992, section 2.3). An answer has n tokens, including the EOS that
fill the canvas. Of these, l are masked, with l uniform in 1 to n; prompt tokens never are. The cross entropy of the
masked tokens is weighted by 1/l. This form, from the paper's appendix, has a lower variance than masking each token
with probability t. `views` draws which part of an example is prompt and which is answer.

In some samples the l masked tokens are drawn uniformly. In the others they are roughly the last ones, as when a decoder
works from left to right (`SPREADS`), and the masks that it would decide next have the largest weights.

Every batch is a function of the seed and its place, so that a resumed run continues exactly.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import torch

from dpad.models.training import corpus
from dpad.models.training.recipe import Phase, Recipe
from dpad.models.training.views import CANVAS, ENDINGS, WIDTHS, View, draw_view
from dpad.models.training.vocabulary import Text

SPREADS = (1e6, 64.0, 16.0, 4.0)  # tokens by which the order of masking may deviate from right-to-left
STOP = 0.1  # extra weight of the first EOS in a next-token step, as a share of the answer's weight
NEXT = 6.0  # number of masks with the largest weights in right-to-left masking: those that a decoder decides next
FAR = 0.3  # weight of masks far from these: a decoder may fill them too, and must learn when not to


@dataclass(frozen=True)
class Batch:
    """The rows of a batch: ids (after masking), positions and targets int64 [B, R], weight float32 [B, R]."""

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor


class Data:
    """An endless sequence of batches; `pool` and `place` are its current place, and may be set."""

    def __init__(self, recipe: Recipe, text: Text) -> None:
        self.recipe, self.text = recipe, text
        self.pool, self.place = 0, 0
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def _draw(self, index: int, phase: Phase) -> list[tuple[int, list[View]]]:
        """The batches of pool `index`: views of equal width, as (width in rows, views)."""
        rng = random.Random(f"pool {self.recipe.seed} {index} {phase}")
        groups: dict[int, list[View]] = {width: [] for width in WIDTHS}
        for _ in range(self.recipe.pool):
            question, answer = corpus.turn(rng, phase == "simple", phase == "stops")
            told = self.text.prompt(question), self.text.encode(answer)
            view = draw_view(*told, self.text, self.recipe, phase, rng)
            groups[view.width(self.recipe, rng)].append(view)
        batches = []
        for width, views in groups.items():
            size = max(1, self.recipe.rows // width)
            batches += [(width, views[i : i + size]) for i in range(0, len(views) - size + 1, size)]
        rng.shuffle(batches)
        return batches

    def batch(self, phase: Phase = "all", causal: bool = False) -> Batch:
        """The next batch of a phase; if `causal`, its rows are not masked and every token is a target."""
        batches = self._drawn(self.pool, phase)
        width, views = batches[self.place % len(batches)]
        rng = random.Random(f"batch {self.recipe.seed} {self.pool} {self.place}")
        self.place += 1
        if self.place >= len(batches):
            self.pool, self.place = self.pool + 1, 0
        rows = [self._row(view, width, causal, rng) for view in views]
        state = torch.Generator().manual_seed(rng.getrandbits(60))
        positions, targets, begin, stop, end = (torch.stack(x) for x in zip(*rows))
        inside = (positions >= begin) & (positions < end)
        if causal:
            weight = inside + STOP * inside.sum(1, keepdim=True) * (positions == stop)
            return Batch(targets, positions, targets, weight / weight.sum())
        strata = torch.arange(len(rows)) + torch.rand(len(rows), generator=state)  # stratified: lower variance
        count = (strata[:, None] / len(rows) * inside.sum(1, keepdim=True)).ceil().clamp(min=1)
        late = torch.tensor([[v.decision - rng.randint(0, 5) if rng.random() < ENDINGS else CANVAS * 2] for v in views])
        ending = (inside & (positions >= late)).sum(1, keepdim=True)
        alone = torch.tensor([view.alone for view in views])[:, None]
        spread = torch.tensor(rng.choices(SPREADS, self.recipe.spreads, k=len(rows)))[:, None]
        noise = torch.rand(targets.shape, generator=state) * spread
        count = count.where((spread == SPREADS[0]) | (ending == 0), ending)
        count = count.where(~alone, inside.sum(1, keepdim=True))
        order = (noise - positions).where(inside, torch.inf).argsort(1).argsort(1)
        masked = (order < count) & inside
        behind = (count - 1 - order) / NEXT  # number of masks before it in right-to-left masking
        weight = masked * torch.where(spread < SPREADS[0], torch.exp(-behind.clamp(min=0)) + FAR, 1.0)
        past = positions - torch.tensor([[view.decision] for view in views])
        near = torch.where(inside & (past >= 0), torch.exp(-past / NEXT), 0.0)
        near = (past == 0) + near / near.sum(1, keepdim=True).clamp(min=1e-6)
        weight += near * alone * weight.sum(1, keepdim=True) / 2
        weight = weight / weight.sum(1, keepdim=True) / len(rows)
        return Batch(torch.where(masked | (positions >= end), self.text.mask, targets), positions, targets, weight)

    def _row(self, view: View, width: int, causal: bool, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """One sample: positions and tokens, int64 [width] each, and three bounds, int64 [1] each.

        The bounds are the positions where the region that may be masked begins, where the answer ends, and where the
        region ends.
        """
        whole = torch.full((view.prompt + CANVAS,), self.text.eos)
        whole[: len(view.tokens)] = torch.tensor(view.tokens)[: len(whole)]
        positions = torch.arange(width)
        if not causal:
            near = width if view.thinned is None else view.thinned - view.forgotten
            if near < width:
                positions = _thinned(near, len(whole) - view.forgotten, width, rng)
            positions = positions + view.forgotten * (positions >= view.prompt)
        positions = positions.clamp(max=len(whole) - 1)
        begin, end = (view.prompt, len(whole)) if causal else (view.begin, view.end)
        bounds = (torch.tensor([bound]) for bound in (begin, len(view.tokens), end))
        return positions, whole[positions], *bounds


def _thinned(near: int, length: int, rows: int, rng: random.Random) -> torch.Tensor:
    """Positions int64 [rows]: all before `near`, and others drawn from those after it, mostly close ones."""
    length = rng.randint(rows, max(rows, length))
    distance = (torch.arange(length) - near) / max(1, length - near)
    chance = torch.exp(-0.5 * (4 * distance) ** 2) + 0.02
    state = torch.Generator().manual_seed(rng.getrandbits(60))
    priority = torch.rand(length, generator=state).log() / chance
    priority[:near] = 1.0
    return priority.topk(rows).indices.sort().values
