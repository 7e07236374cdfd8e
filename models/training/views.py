"""What of an example a training step shows, what of it may be masked, and which decision it is about.

What counts as prompt and as answer varies, so that the states of a decode by blocks are met in training:

    whole      the answer may be masked
    rest       the answer's beginning, of any length, belongs to the prompt
    block      the blocks before a block belong to the prompt, all behind it is masked and weighs nothing
    ending     likewise, all of a block's tokens behind some place; among them is the one where the answer ends, or
               where a line of it does, and it weighs much, as do those behind it, which a decoder must not fill first

On half of the samples the rows behind a block are thinned as DPad thins them (arXiv 2508.14148), with positions kept.
On part of them the answer's beginning is not shown either, but for its last tokens, positions kept likewise: what
follows from the question and the last line can then be learned far from the question at the price of a short sample.

How many rows follow those shown is drawn without a look at the answer: rows just wide enough for it would tell
where it ends, and a model that reads this off stops early where a decoder shows little, and late where it shows all.
"""

import random
from typing import NamedTuple

from dpad.models.training.recipe import Phase, Recipe
from dpad.models.training.vocabulary import Text

BLOCK = 32
CANVAS = 1024  # tokens that an answer and its EOS may fill
WIDTHS = (64, 96, 160, 256, 448, 1056)  # rows of a sample; few shapes compile once and repeat
ENDINGS = 0.25  # share of the ordered samples, and of the blocks, that are taken around `View.decision`
MASKINGS = ("whole", "rest", "block", "ending")
RECALLED = (48, 64, 96)  # tokens shown before what may be masked, where an answer's beginning is not
AHEAD = 0.7  # share of the endings that are asked for before all that leads to them is there
FORGOTTEN = 0.85  # share of the samples whose answer's beginning is not shown, of those that have begun so far
SEEN = (32, 64, 96, 160, 256, 448, 1024)  # rows from the first that may be masked, whatever the answer's length


class View(NamedTuple):
    """An example as a step shows it; places are in tokens from its start.

    `tokens` are prompt and answer, and EOS follow. The answer's first `forgotten` are not shown. Those from `begin` up
    to `end` may be masked; from `thinned` on rows are thinned (None: nowhere). `decision` is where the answer ends, or
    where it might have: at the end of one of its lines; if `alone`, it weighs as much as all else.
    """

    tokens: list[int]
    prompt: int
    forgotten: int
    begin: int
    end: int
    thinned: int | None
    decision: int
    alone: bool

    def width(self, recipe: Recipe, rng: random.Random) -> int:
        """How many rows to show, one of `WIDTHS`."""
        needed = min(self.begin - self.forgotten + rng.choices(SEEN, recipe.seen)[0], WIDTHS[-1])
        return min(width for width in WIDTHS if width >= needed)


def draw_view(
    prompt: list[int], answer: list[int], text: Text, recipe: Recipe, phase: Phase, rng: random.Random
) -> View:
    """What of an example may be masked, drawn from `MASKINGS`; all of the answer in the simple phase."""
    begin = asked = len(prompt)
    decision = _decision(answer, text, rng)
    shares = recipe.endings if phase == "stops" else recipe.maskings
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


def _decision(answer: list[int], text: Text, rng: random.Random) -> int:
    """Where the answer ends; more often where a line of it does, or an item if it has no lines.

    Among these, late ones and those that end as the answer does are drawn more often: 98 where 198 is the last.
    """
    separator = next((token for token in text.separators if token in answer), None)
    if separator is None or rng.random() < 0.4:
        return len(answer)
    ends = [text.values.get(token, -1) % 100 for token in answer]
    places = [place for place, token in enumerate(answer) if token == separator]
    alike = [place for place in places if ends[place - 1] == ends[-1]]
    return rng.choice(rng.choice((places, places[-3:], alike or places)))
