"""Views: the part of an example that a training step shows, the part that may be masked, and the decision to learn.

The boundary between prompt and answer varies, so that training covers the states of block-wise decoding:

    whole      any token of the answer may be masked
    rest       a beginning of the answer, of any length, belongs to the prompt
    block      the blocks before one block belong to the prompt; all tokens after it are masked, without weight
    ending     as in `block`, but all tokens of the block from some place on are masked. Among them is the end of the
               answer or of one of its lines. It has a large weight, and so have the tokens after it, which a decoder
               must not fill first

In half of the samples the rows after a block are thinned as in DPad (arXiv 2508.14148); they keep their positions. In
some samples the answer's beginning is left out except for its last tokens, and positions are kept too. So the model
learns far from the question what follows from the question and the last line, with a short sample.

The number of rows after the shown ones does not depend on the answer's length. If it did, the model would learn the
answer's end from the width, and would stop early or late with a decoder, whose width means nothing.
"""

import random
from typing import NamedTuple

from dpad.models.training.recipe import Phase, Recipe
from dpad.models.training.vocabulary import Text

BLOCK = 32
CANVAS = 1024  # tokens of an answer and the EOS after it
WIDTHS = (64, 96, 160, 256, 448, 1056)  # rows of a sample; few widths, since each is compiled
ENDINGS = 0.25  # share of the right-to-left samples, and of the blocks, that are placed at `View.decision`
MASKINGS = ("whole", "rest", "block", "ending")
RECALLED = (48, 64, 96)  # tokens shown before the first that may be masked, if the answer's beginning is left out
AHEAD = 0.7  # share of the endings in which some tokens before the end are masked too
FORGOTTEN = 0.85  # share of the samples, if the prompt includes enough of the answer, that leave out its beginning
SEEN = (32, 64, 96, 160, 256, 448, 1024)  # least rows from the first that may be masked; see the last paragraph above


class View(NamedTuple):
    """An example as a step shows it; places are in tokens from its start.

    `tokens` are prompt and answer; EOS follow them. The first `forgotten` tokens of the answer are left out. Tokens
    from `begin` up to `end` may be masked; rows from `thinned` on are thinned (None: none are). `decision` is the end
    of the answer or of one of its lines; if `alone`, it has a large weight in the loss.
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
        """The number of rows to show, one of `WIDTHS`."""
        needed = min(self.begin - self.forgotten + rng.choices(SEEN, recipe.seen)[0], WIDTHS[-1])
        return min(width for width in WIDTHS if width >= needed)


def draw_view(
    prompt: list[int], answer: list[int], text: Text, recipe: Recipe, phase: Phase, rng: random.Random
) -> View:
    """Draw a view of an example; its masking is one of `MASKINGS`, and `whole` in the simple phase."""
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
    """The place, in tokens, of the answer's end or, more often, of the end of a line (or of an item without lines).

    Late lines, and lines with the same last digits as the answer (98 if 198 is the last), are drawn more often.
    """
    separator = next((token for token in text.separators if token in answer), None)
    if separator is None or rng.random() < 0.4:
        return len(answer)
    ends = [text.values.get(token, -1) % 100 for token in answer]
    places = [place for place, token in enumerate(answer) if token == separator]
    alike = [place for place in places if ends[place - 1] == ends[-1]]
    return rng.choice(rng.choice((places, places[-3:], alike or places)))
