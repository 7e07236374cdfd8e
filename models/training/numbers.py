"""Initial rows of numbers in the embedding and the head of an embedded model, where each number is one token.

A thousand rows that are learned independently need many examples of every number. So the rows start as waves of the
value, with which sums and successors are rotations. In the embedding this structure survives training. In the head it
would not, since every step moves only the rows of its own numbers. There the rows are restricted to directions that
numbers share, so that what one number learns also holds for others.
"""

import torch
import torch.nn.functional as F

PERIODS = (2.0, 4.0, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0, 200.0, 250.0, 500.0, 1000.0)


def waves(values: list[int], width: int, state: torch.Generator) -> torch.Tensor:
    """Cosine and sine of each value at `PERIODS`, randomly rotated: float32 [values, width], about unit variance."""
    angles = _angles(torch.tensor(values), PERIODS)
    turn: torch.Tensor = torch.linalg.qr(torch.randn(width, 2 * len(PERIODS), generator=state))[0]
    turned: torch.Tensor = torch.cat([angles.cos(), angles.sin()], dim=1) @ turn.T * (width / len(PERIODS)) ** 0.5
    return turned


def shared_directions(values: list[int]) -> torch.Tensor:
    """Orthonormal float32 [values, directions]: the last two digits, the hundreds and slow waves, which numbers share.

    In this space the row of 358 combines what 58 and 300 have learned.
    """
    numbers = torch.tensor(values)
    angles = _angles(numbers, tuple(period for period in PERIODS if period > 100))
    shared = [F.one_hot(numbers % 100), F.one_hot(numbers // 100), angles.cos(), angles.sin()]
    directions, sizes, _ = torch.linalg.svd(torch.cat(shared, dim=1).double(), full_matrices=False)
    kept: torch.Tensor = directions[:, sizes > 1e-6 * sizes[0]]
    return kept.float()


def _angles(values: torch.Tensor, periods: tuple[float, ...]) -> torch.Tensor:
    """float32 [values, periods]: the phase of each value in each period."""
    return 2 * torch.pi * values[:, None] / torch.tensor(periods)
