"""Training batches: which rows take part, which of them are masked, and what each weighs in the loss.

The objective is LLaDA's supervised one (arXiv 2502.09992, section 2.3): of an answer of n tokens, which
counts the EOS that fill the canvas, l are masked, l uniform in 1 to n, the prompt never; the cross entropy
of the masked tokens is weighted 1/l. That is the form of its appendix, of lower variance than masking each
token with probability t. What counts as prompt and as answer varies, so that the states of a decode by
blocks are met in training:

    whole      the answer may be masked
    rest       the answer's beginning, of any length, belongs to the prompt
    block      the blocks before a block belong to the prompt, all behind it is masked and weighs nothing
    ending     likewise, all of a block's tokens behind some place; among them is the one where the answer ends, or
               where a line of it does, and it weighs much, as do those behind it, which a decoder must not fill first

On half of the samples the rows behind a block are thinned as DPad thins them (arXiv 2508.14148), with
positions kept. On part of them the answer's beginning is not shown either, but for its last tokens, positions kept
likewise: what follows from the question and the last line can then be learned far from the question at the price of a
short sample. The first part of a run is simple: short examples, whole answers, nothing thinned.

How many rows follow those shown is drawn without a look at the answer: rows just wide enough for it would tell
where it ends, and a model that reads this off stops early where a decoder shows little, and late where it shows all.

Which l tokens are masked is uniform on part of the samples, and on the others roughly the last ones, as
when a decoder works from left to right (`SPREADS`); there the masks that it would decide next weigh most.
And a run does not begin with masks: its first steps predict the next token from those before it, and only
then do masks take over, step by step. Dream was made from such a model, and its row before a token predicts
it; in LLaDA a mask in the token's place does, which sees what lies before it (`trainer.attend_in_streams`).
Every token of an answer is then a target with all that it follows from in view, and a small model learns to
copy and to add in a few hundred steps; from masks alone it did not in thousands.

Where counting stops, a decision between two numbers that differ by one, is learned last, and only where it is most of
what is asked: hence a phase of its own (`Recipe.stops`).

All of it is a function of seed and place, so that a resumed run goes on as if never stopped.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from dpad.models.training import corpus
from dpad.models.training.vocabulary import Text

BLOCK = 32
CANVAS = 1024  # tokens that an answer and its EOS may fill
WIDTHS = (64, 96, 160, 256, 448, 1056)  # rows of a sample; few shapes compile once and repeat
SPREADS = (1e6, 64.0, 16.0, 4.0)  # tokens by which the order of masking may differ from right to left
STOP = 0.1  # of an answer's weight in a next-token step, more on its first EOS: a long answer has but one
ENDINGS = 0.25  # share of the ordered samples, and of the blocks, that are taken around `View.decision`
NEXT = 6.0  # masks that weigh most where they come from the right: those that a decoder decides next
FAR = 0.3  # what the masks far from those weigh: a decoder may fill them too, so it must know when not to
MASKINGS = ("whole", "rest", "block", "ending")
RECALLED = (48, 64, 96)  # tokens shown before what may be masked, where an answer's beginning is not
AHEAD = 0.7  # share of the endings that are asked for before all that leads to them is there
FORGOTTEN = 0.85  # share of the samples whose answer's beginning is not shown, of those that have begun so far
SEEN = (32, 64, 96, 160, 256, 448, 1024)  # rows from the first that may be masked, whatever the answer's length

Phase = Literal["simple", "stops", "all"]


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on, apart from the number of steps; shares are of the run."""

    seed: int = 0
    rows: int = 3072  # rows of a batch: samples times width
    rate: float = 1.5e-3
    decay: float = 0.02
    warmup: float = 0.01
    cooldown: float = 0.3  # begins behind `stops`, which take the full rate
    simple: float = 0.4  # share of the run, from its start, that takes simple examples only
    stops: tuple[float, float] = (0.55, 0.7)  # between these shares most examples are about where answers end
    causal: float = 0.1  # share of the run, from its start, that predicts the next token instead
    blended: float = 0.85  # share of the run after which no step does; between, half of them at first, then fewer
    pool: int = 512  # examples drawn together and grouped by length
    seen: tuple[float, ...] = (0.25, 0.25, 0.25, 0.13, 0.08, 0.03, 0.01)  # how often at least each of SEEN
    maskings: tuple[float, ...] = (0.35, 0.2, 0.35, 0.1)  # how often each of MASKINGS
    endings: tuple[float, ...] = (0.1, 0.1, 0.2, 0.6)  # the same in the phase about where answers end
    spreads: tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)  # how often each of SPREADS

    @classmethod
    def further(cls, seed: int) -> "Recipe":
        """For weights that were trained before: masks only, nothing simple, and where answers end comes first."""
        return cls(seed, rate=1e-3, simple=0.0, stops=(0.0, 0.4), causal=0.0, blended=0.0, cooldown=0.6)

    def phase(self, progress: float) -> Phase:
        """Which examples a step takes."""
        if self.stops[0] <= progress < self.stops[1]:
            return "stops"
        return "simple" if progress < self.simple else "all"

    def is_causal(self, step: int, progress: float) -> bool:
        """Whether a step predicts the next token from those before it."""
        if progress >= self.blended:
            return False
        share = 0.5 * (self.blended - progress) / (self.blended - self.causal)
        return progress < self.causal or random.Random(f"objective {self.seed} {step}").random() < share


@dataclass(frozen=True)
class Batch:
    """Rows that take part: ids (after masking), positions, targets int64 [B, R], weight float32 [B, R]."""

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor


class View(NamedTuple):
    """An example as a step shows it; all in tokens from its start.

    `tokens` are prompt and answer, and EOS follow; the answer's first `forgotten` are not shown; [`begin`, `end`) may
    be masked; rows from `thinned` on are
    thinned (None: they are not). `decision` is where the answer ends, or where it might have: at the end of one of its
    lines; if `alone`, it weighs as much as all else.
    """

    tokens: list[int]
    prompt: int
    forgotten: int
    begin: int
    end: int
    thinned: int | None
    decision: int
    alone: bool


class Data:
    """An endless sequence of batches; `pool` and `place` say where it stands, and may be set."""

    def __init__(self, recipe: Recipe, text: Text) -> None:
        self.recipe, self.text = recipe, text
        self.pool, self.place = 0, 0
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def _draw(self, index: int, phase: Phase) -> list[tuple[int, list[View]]]:
        """Pool `index`: views grouped by the rows they take, as (width, views)."""
        rng = random.Random(f"pool {self.recipe.seed} {index} {phase}")
        groups: dict[int, list[View]] = {width: [] for width in WIDTHS}
        for _ in range(self.recipe.pool):
            question, answer = corpus.turn(rng, phase == "simple", phase == "stops")
            view = self._view(self.text.prompt(question), self.text.encode(answer), phase, rng)
            needed = min(view.begin - view.forgotten + rng.choices(SEEN, self.recipe.seen)[0], WIDTHS[-1])
            groups[min(width for width in WIDTHS if width >= needed)].append(view)
        batches = []
        for width, views in groups.items():
            size = max(1, self.recipe.rows // width)
            batches += [(width, views[i : i + size]) for i in range(0, len(views) - size + 1, size)]
        rng.shuffle(batches)
        return batches

    def _view(self, prompt: list[int], answer: list[int], phase: Phase, rng: random.Random) -> View:
        """What of an example may be masked, drawn from `MASKINGS`; all of the answer in the simple phase."""
        begin = asked = len(prompt)
        decision = self._decision(answer, rng)
        shares = self.recipe.endings if phase == "stops" else self.recipe.maskings
        masking = "whole" if phase == "simple" else rng.choices(MASKINGS, shares)[0]
        if masking == "rest":
            begin += rng.randint(0, len(answer))
        elif masking == "block":
            begin += BLOCK * (decision // BLOCK if rng.random() < ENDINGS else rng.randint(0, len(answer) // BLOCK))
        elif masking == "ending":
            begin += decision - (rng.randint(0, decision % BLOCK) if rng.random() < AHEAD else 0)
        begin = min(begin, WIDTHS[-1] - BLOCK)
        end = asked + CANVAS
        if masking in ("block", "ending"):
            end = begin + BLOCK - (begin - asked) % BLOCK
        near = end if masking in ("block", "ending") else begin + BLOCK * rng.randint(1, 4)
        thinned = near if rng.random() < 0.5 and phase != "simple" else None
        forgotten = max(0, begin - asked - rng.choice(RECALLED)) if rng.random() < FORGOTTEN else 0
        return View([*prompt, *answer], asked, forgotten, begin, end, thinned, asked + decision, masking == "ending")

    def _decision(self, answer: list[int], rng: random.Random) -> int:
        """Where the answer ends; more often where a line of it does, or an item if it has no lines.

        Among these, late ones and those whose last token is the answer's are drawn more often, and so is what else
        is rare and hard: the first token of another hundred.
        """
        separator = next((token for token in self.text.separators if token in answer), None)
        if separator is None or rng.random() < 0.4:
            return len(answer)
        places = [place for place, token in enumerate(answer) if token == separator]
        alike = [place for place in places if answer[place - 1] == answer[-1]]  # 98 where 198 is the last
        return rng.choice(rng.choice((places, places[-3:], alike or places, self._carries(answer) or places)))

    def _carries(self, answer: list[int]) -> list[int]:
        """Where numbers begin whose hundreds are not those of the number before, as in 199, 200."""
        places, hundreds = [], None
        for place, token in enumerate(answer):
            if token in self.text.digits and (place == 0 or answer[place - 1] not in self.text.digits):
                leading = [token] if answer[place + 1 : place + 2] and answer[place + 1] in self.text.digits else []
                if hundreds is not None and leading != hundreds:
                    places.append(place)
                hundreds = leading
        return places

    def batch(self, phase: Phase = "all", causal: bool = False) -> Batch:
        """The next batch of a phase; if `causal`, of clean rows whose every token is a target."""
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
        strata = torch.arange(len(rows)) + torch.rand(len(rows), generator=state)  # low variance of the loss
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
        behind = (count - 1 - order) / NEXT  # how many masks lie before it, if they come from the right
        weight = masked * torch.where(spread < SPREADS[0], torch.exp(-behind.clamp(min=0)) + FAR, 1.0)
        past = positions - torch.tensor([[view.decision] for view in views])
        near = torch.where(inside & (past >= 0), torch.exp(-past / NEXT), 0.0)
        near = (past == 0) + near / near.sum(1, keepdim=True).clamp(min=1e-6)
        weight += near * alone * weight.sum(1, keepdim=True) / 2
        weight = weight / weight.sum(1, keepdim=True) / len(rows)
        return Batch(torch.where(masked | (positions >= end), self.text.mask, targets), positions, targets, weight)

    def _row(self, view: View, width: int, causal: bool, rng: random.Random) -> tuple[torch.Tensor, ...]:
        """One sample: positions and tokens int64 [width]; where the region that may be masked begins, the answer
        stops, and the region ends."""
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
    """Positions int64 [rows]: all before `near`, the others drawn from those behind it, mostly close ones."""
    length = rng.randint(rows, max(rows, length))
    distance = (torch.arange(length) - near) / max(1, length - near)
    chance = torch.exp(-0.5 * (4 * distance) ** 2) + 0.02
    state = torch.Generator().manual_seed(rng.getrandbits(60))
    priority = torch.rand(length, generator=state).log() / chance
    priority[:near] = 1.0
    return priority.topk(rows).indices.sort().values
