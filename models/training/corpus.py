"""Training text for the embedded models: seeded examples of every kind, in two splits, with few-shot prompts.

    rng = random.Random(0)
    question, answer = sample(rng, "train")
    problems = heldout(seed=1, count=100)

Every answer follows from its question, so that a small model can learn it. Questions are split by their numbers: the
numbers of a question, in order, are hashed, and one hash in sixteen is held out. So no question of one split can occur
in the other, even with other names and things. Half of the held-out problems also have a form that does not occur in
training (`problems.Forms`).
"""

import hashlib
import random
import re
from typing import Literal

from dpad.models.training.problems import PROBLEMS, Example, Forms
from dpad.models.training.routines import LONG, SHORT

Split = Literal["train", "heldout"]
KINDS = (*PROBLEMS, *LONG, *SHORT)
BRIEF = 240  # most characters of a simple answer
WEIGHTS = {"story": 40, "groups": 14, "daily": 11, "compare": 15, "shopping": 12}
WEIGHTS |= {"count": 24, "numbered": 16, "weeks": 14, "counts": 14, "lists": 8, "crossing": 14, "find": 4, "until": 4}
WEIGHTS |= {"down": 20, "sums": 2, "table": 2, "arithmetic": 24, "several": 8, "instruction": 16}
STOPS = {kind: 0.3 * weight for kind, weight in WEIGHTS.items()}
STOPS |= {"count": 20, "counts": 28, "crossing": 16, "down": 30, "numbered": 14, "lists": 12, "weeks": 18}
STOPS |= {"until": 20, "find": 20}
SHOTS = (0,) * 12 + (1, 1, 1, 2, 3, 4)  # worked examples before a word problem
PLAIN = 0.6  # share of zero-shot problems without the form `Question: ... Answer:`


def is_heldout(question: str) -> bool:
    """Whether the question's numbers, in order, fall in the held-out sixteenth; False without numbers."""
    numbers = re.findall(r"\d+", question)
    return bool(numbers) and hashlib.sha256(" ".join(numbers).encode()).digest()[0] < 16


def sample(rng: random.Random, split: Split, kind: str | None = None) -> Example:
    """One example of the split; its kind is `kind`, or else drawn by `WEIGHTS`."""
    kind = kind or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    forms = Forms(rng, heldout=split == "heldout" and rng.random() < 0.5)
    while True:
        example = PROBLEMS[kind](rng, forms) if kind in PROBLEMS else (LONG | SHORT)[kind](rng)
        if is_heldout(example.question) == (split == "heldout"):
            return example


def heldout(seed: int, count: int, kinds: tuple[str, ...] = tuple(PROBLEMS)) -> list[Example]:
    """`count` held-out examples that alternate between `kinds`; by default word problems with a `####` line."""
    rng = random.Random(seed)
    return [sample(rng, "heldout", kinds[i % len(kinds)]) for i in range(count)]


def few_shot(shots: list[Example], question: str) -> str:
    """A prompt with worked examples before the question, in the layout of GSM8K in lm-evaluation-harness."""
    told = [f"Question: {shot.question}\nAnswer: {shot.answer}" for shot in shots]
    return "\n\n".join([*told, f"Question: {question}\nAnswer:"])


def turn(rng: random.Random, simple: bool = False, stops: bool = False) -> Example:
    """One training example as the model sees it: unless `simple`, a word problem may follow worked ones.

    With `stops` most examples teach where an answer ends.
    """
    weights = STOPS if stops else WEIGHTS
    kind = rng.choices(KINDS, [weights[kind] for kind in KINDS])[0]
    example = sample(rng, "train", kind)
    while simple and len(example.answer) > BRIEF:
        example = sample(rng, "train", kind)
    if simple or kind not in PROBLEMS:
        return example
    shots = rng.choice(SHOTS)
    if shots == 0 and rng.random() < PLAIN:
        return example
    drawn = [sample(rng, "train", rng.choice(list(PROBLEMS))) for _ in range(shots)]
    return Example(few_shot(drawn, example.question), example.answer)
