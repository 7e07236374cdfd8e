"""How an embedded model is trained: sizes, rates, and which share of a run does what.

A run does not begin with masks: its first steps predict the next token from those before it, and only then do masks
take over, step by step. Dream was made from such a model, and its row before a token predicts it; in LLaDA a mask in
the token's place does, which sees what lies before it (`trainer.attend_in_streams`). Every token of an answer is then a
target with all that it follows from in view, and a small model learns to copy and to add in a few hundred steps; from
masks alone it did not in thousands. The first part of a run is simple: short examples, whole answers, nothing thinned.

Where counting stops, a decision between two numbers that differ by one, is learned last, and only where it is most of
what is asked: hence a phase of its own (`Recipe.stops`).
"""

import random
from dataclasses import dataclass
from typing import Literal

Phase = Literal["simple", "stops", "all"]


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on, apart from the number of steps; shares are of the run."""

    seed: int = 0
    rows: int = 3072  # rows of a batch: samples times width
    rate: float = 1.5e-3
    decay: float = 0.02
    average: float = 0.999  # what the mean of the weights, which is exported, keeps of itself in a step
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
        return cls(seed, rate=8e-4, simple=0.0, stops=(0.0, 0.4), causal=0.0, blended=0.0, cooldown=0.6)

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
