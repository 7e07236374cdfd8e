"""Weights in few bits: how the matrix of a linear layer lies in a safetensors file, and the way back.

    packed = take_packed(state)                         # out of a state dict, by the names of the weights
    packed["blocks.0.q_proj.weight"].unpack(torch.float32)      # [N, K], as torch's Linear holds it

A packed weight [N, K] is two tensors, transposed as ONNX's DequantizeLinear wants them before a MatMul:

    NAME.int8   int8 [K, N]             NAME.scale   [K / G, N]: one for every G inputs of an output
    NAME.int4   uint8 [K, N / 2]                     [K / G, N]
    NAME.fp8    float8 (E4M3) [K, N]                 [N]: one an output, G = K

weight[n, k] = code[k, n] · scale[k // G, n], symmetric: zero is code 0. Codes of int4 are in two's complement, those
of even outputs in the lower half of a byte. Scales have the dtype that the step computes in, and may be negative
in int4, whose largest weight of a group becomes -8.
"""

from dataclasses import dataclass

import torch
from torch import nn

from dpad.runtime.bundle.variant import PACKED

SCALE = "scale"


@dataclass(frozen=True)
class Packed:
    """The two tensors of one weight, and their format: a name of `PACKED`."""

    format: str
    codes: torch.Tensor
    scale: torch.Tensor

    def unpack(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [N, K] in `dtype`, each value rounded once."""
        return unpack(self.codes, self.scale, self.format, dtype)


def unpack(codes: torch.Tensor, scale: torch.Tensor, weights: str, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] in `dtype` from the tensors of the format `weights`."""
    codes = numbers(codes, weights)
    inputs, outputs = codes.shape
    groups = scale.reshape(-1, 1, outputs).to(dtype)
    return (codes.to(dtype).reshape(len(groups), -1, outputs) * groups).reshape(inputs, outputs).T


def numbers(codes: torch.Tensor, weights: str) -> torch.Tensor:
    """The codes of the format `weights` one by one [K, N], those of int4 taken apart."""
    if weights != "int4":
        return codes
    halves = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return (halves.to(torch.int8) ^ 8) - 8


def take_packed(state: dict[str, torch.Tensor]) -> dict[str, Packed]:
    """Take the tensors of packed weights out of `state`; by the name of the weight."""
    packed = {}
    for name in [name for name in state if name.rpartition(".")[2] in PACKED]:
        weight, _, weights = name.rpartition(".")
        packed[weight] = Packed(weights, state.pop(name), state.pop(f"{weight}.{SCALE}"))
    return packed


class Unpack(nn.Module):
    """A parametrization: the weight from its codes, made when it is used."""

    scale: torch.Tensor

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", packed.scale)
        self.weights, self.dtype = packed.format, dtype

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes as they are stored -> weight [N, K]."""
        return unpack(codes, self.scale, self.weights, self.dtype)
