"""`Likely`: one row of logits as the tokens that matter in it, and their probabilities.

    likely = Likely.of(logits, temperature=0.2)
    token = likely.filtered(top_k=None, top_p=0.95).draw(rng)
    likely.probability(token)

A vocabulary of 150 thousand has few tokens that any decoder could write, fewer at low temperatures. What lies so far
below the best that all of it together would not change a float64 sum is left out, and only what is left is
exponentiated, sorted or drawn from.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

_REACH = 50.0  # exp(-50) times the largest vocabulary is below 2**-53
_CHUNK = 256  # tokens of which the highest is looked at first
_LOWEST = float(np.finfo(np.float32).min)


class Likely(NamedTuple):
    """`tokens` int64 [n], ascending, and `powers` float64 [n], their probabilities over that of the likeliest."""

    tokens: NDArray[np.int64]
    powers: NDArray[np.float64]

    @classmethod
    def of(cls, logits: NDArray[np.float32], temperature: float = 1.0) -> Self:
        """The softmax of `logits` [V] over `temperature`; the largest of them must be finite."""
        best = float(logits.max())
        tokens = np.flatnonzero(logits >= max(best - _REACH * temperature, _LOWEST))
        return cls(tokens, np.exp((logits.take(tokens).astype(np.float64) - best) / temperature))

    def filtered(self, top_k: int | None, top_p: float | None) -> "Likely":
        """Without what `top_k` and `top_p`, each of the whole row, rule out (Dream); a tie with the last is in."""
        least = 0.0
        if top_k is not None and top_k < len(self.powers):
            least = self._highest(top_k)
        if top_p is not None:
            least = max(least, self._nucleus(top_p))
        kept = self.powers >= least
        return Likely(self.tokens[kept], self.powers[kept])

    def _highest(self, count: int) -> float:
        """The least of the `count` highest powers."""
        powers, highest = self.powers, np.maximum.reduceat(self.powers, np.arange(0, len(self.powers), _CHUNK))
        if count <= len(highest):  # as many chunks reach up to this, so what lies below is not among them
            powers = powers[powers >= np.partition(highest, -count)[-count]]
        return float(np.partition(powers, -count)[-count])

    def _nucleus(self, top_p: float) -> float:
        """The least power of the smallest set of tokens whose probability reaches `top_p`."""
        total = self.powers.sum()
        # Those below this have less than 1 - top_p together, so none of them is in it, and few are left to sort.
        ranked = np.sort(self.powers[self.powers >= (1 - top_p) * total / len(self.powers)])[::-1]
        reached = np.searchsorted(ranked.cumsum(), top_p * total)
        return float(ranked[min(reached, len(ranked) - 1)])  # rounding may leave the sum short

    def draw(self, rng: np.random.Generator) -> int:
        """A token, as likely as it is, from one number of `rng`.

        Engines that differ by rounding draw the same, but where that number falls between two tokens.
        """
        heights = self.powers.cumsum()
        place = np.searchsorted(heights, rng.random() * heights[-1], side="right")
        return int(self.tokens[min(place, len(heights) - 1)])

    def probability(self, token: int) -> float:
        """Of one of `tokens`."""
        return float(self.powers[np.searchsorted(self.tokens, token)] / self.powers.sum())

    def negative_entropy(self) -> float:
        """Dream's order `entropy`: of the surest row it is the highest, 0."""
        probabilities = self.powers / self.powers.sum()
        return float((probabilities * np.log(probabilities + 1e-10)).sum())

    def margin(self) -> float:
        """Dream's order `topk_margin`: what the best has more than the second."""
        best = self.powers.argmax()
        second = max(self.powers[:best].max(initial=0), self.powers[best + 1 :].max(initial=0))
        return float((self.powers[best] - second) / self.powers.sum())
