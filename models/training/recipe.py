"""The recipe of an embedded model: sizes, rates, and what each part of a run trains.

A run starts with next-token prediction, and masked steps replace it gradually. Dream was adapted from an autoregressive
model, so in its case the row before a token predicts it. In LLaDA a mask in the token's place predicts it, and attends
only the tokens before it (`trainer.attend_in_streams`). In these steps every token of an answer is a target, with
everything from which it follows in view. A small model then learns to copy and to add in a few hundred steps; with
masks alone it did not learn that in thousands. The first part of a run has only short examples, whole answers and no
thinning.

Where counting stops is a decision between two numbers that differ by one. The model learns it last, and only if most
examples are about it, so it has a phase of its own (`Recipe.stops`).
"""

import random
from dataclasses import dataclass
from typing import Literal

Phase = Literal["simple", "stops", "all"]


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, except the number of steps; shares are shares of the run."""

    seed: int = 0
    rows: int = 3072  # rows of a batch: samples times width
    rate: float = 1.5e-3
    decay: float = 0.02
    average: float = 0.999  # decay, per step, of the moving average of the weights, which is exported
    warmup: float = 0.01
    cooldown: float = 0.3  # share of the run with a falling rate; starts after `stops`, which uses the full rate
    simple: float = 0.4  # share of the run, from its start, with simple examples only
    stops: tuple[float, float] = (0.55, 0.7)  # between these shares most examples teach where an answer ends
    causal: float = 0.1  # share of the run, from its start, with next-token prediction only
    blended: float = 0.85  # end of next-token prediction; after `causal` half of the steps have it, then ever fewer
    pool: int = 512  # examples drawn together and grouped by length
    seen: tuple[float, ...] = (0.25, 0.25, 0.25, 0.13, 0.08, 0.03, 0.01)  # probabilities of SEEN
    maskings: tuple[float, ...] = (0.35, 0.2, 0.35, 0.1)  # probabilities of MASKINGS
    endings: tuple[float, ...] = (0.1, 0.1, 0.2, 0.6)  # probabilities of MASKINGS in the phase `stops`
    spreads: tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)  # probabilities of SPREADS

    @classmethod
    def further(cls, seed: int) -> "Recipe":
        """A recipe for trained weights: masks only, no simple phase, and the phase `stops` first."""
        return cls(seed, rate=8e-4, simple=0.0, stops=(0.0, 0.4), causal=0.0, blended=0.0, cooldown=0.6)

    def phase(self, progress: float) -> Phase:
        """The phase, which decides the kind of examples, at `progress` in [0, 1) of the run."""
        if self.stops[0] <= progress < self.stops[1]:
            return "stops"
        return "simple" if progress < self.simple else "all"

    def is_causal(self, step: int, progress: float) -> bool:
        """Whether a step trains next-token prediction."""
        if progress >= self.blended:
            return False
        share = 0.5 * (self.blended - progress) / (self.blended - self.causal)
        return progress < self.causal or random.Random(f"objective {self.seed} {step}").random() < share
