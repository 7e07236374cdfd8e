"""Rotary position embedding (arXiv 2104.09864), in the half-split form, at absolute positions.

    cos, sin = rotation(positions, head_size, theta)
    query = rotate(query, cos, sin)

It is computed once per step from the gather indices and shared by all layers. So a token that DPad keeps is rotated by
its canvas position, not by its rank among the kept tokens.
"""

from collections.abc import Callable

import torch

# A model's rotation: `rotate`, or `rotate_as_node` for tracing to ONNX.
Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def rotation(positions: torch.Tensor, head_size: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """positions [...] -> cos and sin of the angles, float32 [..., 1, D/2] each."""
    exponent = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = positions[..., None, None].float() * (1.0 / theta**exponent)
    return angles.cos(), angles.sin()


def rotate(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `rows` [..., heads, D] in float32, and return them in their own dtype."""
    half = rows.shape[-1] // 2
    a, b = rows[..., :half].float(), rows[..., half:].float()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(rows.dtype)


def rotate_as_node(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`rotate` for `rows` [B, Q, heads, D] as one ONNX node, which engines support, instead of eight.

    The exporter passes it to the model. If the model chose it itself, a compiler of the model would see it too, and
    could not compile it.
    """
    flat = (rows.float().flatten(2), cos.squeeze(2), sin.squeeze(2))
    turned: torch.Tensor = torch.onnx.ops.rotary_embedding(*flat, num_heads=rows.shape[2])
    return turned.reshape(rows.shape).to(rows.dtype)
