"""Packed weights: the layout of a linear layer's matrix in a safetensors file, and how to unpack it.

    packed = take_packed(state)                         # from a state dict; keys are names of weights
    packed["blocks.0.q_proj.weight"].unpack(torch.float32)      # [N, K], as in torch's Linear

A packed weight [N, K] is two tensors, transposed as ONNX needs them for DequantizeLinear before a MatMul:

    NAME.int8   int8 [K, N]             NAME.scale   [K / G, N]: one for every G inputs of an output
    NAME.int4   uint8 [K, N / 2]                     [K / G, N]
    NAME.fp8    float8 (E4M3) [K, N]                 [N]: one an output, G = K

weight[n, k] = code[k, n] · scale[k // G, n], which is symmetric: code 0 is zero. int4 codes are in two's complement;
the lower half of a byte belongs to an even output. Scales have the dtype of the step. In int4 they may be negative,
since the largest weight of a group becomes -8.
"""

from dataclasses import dataclass

import torch
from torch import nn

from dpad.runtime.bundle.variant import PACKED

SCALE = "scale"


@dataclass(frozen=True)
class Packed:
    """The two tensors of one weight, and their format, one of `PACKED`."""

    format: str
    codes: torch.Tensor
    scale: torch.Tensor

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [N, K] in `dtype`, each value rounded once."""
        return unpack(self.codes, self.scale, self.format, dtype)


def unpack(codes: torch.Tensor, scale: torch.Tensor, weights: str, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] in `dtype`, from codes and scales in the format `weights`."""
    codes = numbers(codes, weights)
    inputs, outputs = codes.shape
    groups = scale.reshape(-1, 1, outputs).to(dtype)
    return (codes.to(dtype).reshape(len(groups), -1, outputs) * groups).reshape(inputs, outputs).T


def numbers(codes: torch.Tensor, weights: str) -> torch.Tensor:
    """Codes [K, N] in the format `weights`, one per element: int4 codes are separated."""
    if weights != "int4":
        return codes
    halves = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return (halves.to(torch.int8) ^ 8) - 8


def take_packed(state: dict[str, torch.Tensor]) -> dict[str, Packed]:
    """Remove the tensors of packed weights from `state`, and return them by the weight's name."""
    packed = {}
    for name in [name for name in state if name.rpartition(".")[2] in PACKED]:
        weight, _, weights = name.rpartition(".")
        packed[weight] = Packed(weights, state.pop(name), state.pop(f"{weight}.{SCALE}"))
    return packed


class Unpack(nn.Module):
    """A parametrization that unpacks a weight from its codes whenever it is used."""

    scale: torch.Tensor

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", packed.scale)
        self.weights, self.dtype = packed.format, dtype

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes as they are stored -> weight [N, K]."""
        return unpack(codes, self.scale, self.weights, self.dtype)
