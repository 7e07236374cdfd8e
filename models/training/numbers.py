"""What the tables of an embedded model say of numbers, each of which is one token.

A table of a thousand rows, each learned alone, needs many examples of every number. Rows that begin as waves of the
value, in the embedding and in the head, make sums and successors rotations; in the embedding they stay so. In the head
they do not: every step moves the rows that it met, each its own way. There the rows are kept to directions that
numbers share, so that what is learned of one holds for others.
"""

import torch
import torch.nn.functional as F

PERIODS = (2.0, 4.0, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0, 200.0, 250.0, 500.0, 1000.0)


def waves(values: list[int], width: int, state: torch.Generator) -> torch.Tensor:
    """float32 [values, width] of about unit variance: cosine and sine of each value at `PERIODS`, turned at random."""
    angles = _angles(torch.tensor(values), PERIODS)
    turn: torch.Tensor = torch.linalg.qr(torch.randn(width, 2 * len(PERIODS), generator=state))[0]
    turned: torch.Tensor = torch.cat([angles.cos(), angles.sin()], dim=1) @ turn.T * (width / len(PERIODS)) ** 0.5
    return turned


def shared_directions(values: list[int]) -> torch.Tensor:
    """Orthonormal float32 [values, directions] of what numbers share: the last two digits, the hundreds, slow waves.

    With them 358 takes a row of what 58 and 300 have.
    """
    numbers = torch.tensor(values)
    angles = _angles(numbers, tuple(period for period in PERIODS if period > 100))
    shared = [F.one_hot(numbers % 100), F.one_hot(numbers // 100), angles.cos(), angles.sin()]
    directions, sizes, _ = torch.linalg.svd(torch.cat(shared, dim=1).double(), full_matrices=False)
    kept: torch.Tensor = directions[:, sizes > 1e-6 * sizes[0]]
    return kept.float()


def _angles(values: torch.Tensor, periods: tuple[float, ...]) -> torch.Tensor:
    """float32 [values, periods]: where each value is in each period."""
    return 2 * torch.pi * values[:, None] / torch.tensor(periods)
