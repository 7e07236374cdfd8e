"""`Together`: linear layers that take the same rows, called as one.

    self.qkv = Together(self.q_proj, self.k_proj, self.v_proj)
    query, key, value = self.qkv(x)         # [..., N] each

A model is defined, loaded and traced with one product for each of them. Whoever runs it may put one product of all in
its place, which reads the rows once and keeps a GPU busier.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

# Rows [..., K] to the rows of several layers, [..., N] each.
Products = Callable[[Tensor], Sequence[Tensor]]


class Together:
    """Calls `parts` one after the other. It is no module: the parts are registered by the layer that has them."""

    def __init__(self, *parts: nn.Linear) -> None:
        self.parts = parts

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x [..., K] -> [..., N] of each part."""
        return [part(x) for part in self.parts]
