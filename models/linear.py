"""`Together`: several linear layers on the same rows, called as one.

    self.qkv = Together(self.q_proj, self.k_proj, self.v_proj)
    query, key, value = self.qkv(x)         # [..., N] each

A model is defined, loaded and traced with one product for each layer. An engine may replace it by one product for all
layers, which reads the rows once and uses a GPU better.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

# A function from rows [..., K] to the outputs of several layers, [..., N] each.
Products = Callable[[Tensor], Sequence[Tensor]]


class Together:
    """Calls `parts` one after the other. It is not a module: the layer that has the parts registers them."""

    def __init__(self, *parts: nn.Linear) -> None:
        self.parts = parts

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x [..., K] -> [..., N] of each part."""
        return [part(x) for part in self.parts]
