"""Products of rows with weights in a compiled step, for 16-bit weights and for the packed formats.

    product = packed_product(packed, bias)
    product(x)                               # rows [M, K] -> [M, N]
    query, key, value = Merged(product, (q, k, v))(x)

Each product is a module that replaces an `nn.Linear` or a `Together` in a layer. The formats are computed as follows:

    int4   by tinygemm, PyTorch's kernel, which unpacks within the product and computes in bfloat16 on a GPU. There it
           unpacks again for every 16 rows, so that for many rows its tiles are unpacked before the product instead
    fp8    by `torch._scaled_mm` on float8: the rows are rounded to float8 too, each with a scale of its own
    int8   unpacked to memory before the product, since PyTorch has no product for scales of groups

Sizes that a kernel does not support are unpacked as int8 is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpad.models.packed import Packed, numbers, unpack

_LARGEST = 448.0  # largest float8 E4M3
_SMALLEST = 1e-12  # smallest scale of a row, for rows of zeros
_INT4_GROUPS = (32, 64, 128, 256)
_INT4_ROWS = 128  # most rows for which tinygemm is assumed to be faster than unpacking first; not measured
_AMPERE, _ADA = (8, 0), (8, 9)


class Merged(nn.Module):
    """One product that replaces several on the same rows; `sizes` are their numbers of outputs."""

    def __init__(self, product: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.product, self.sizes = product, list(sizes)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """x [..., K] -> [..., N] of each."""
        parts: Sequence[Tensor] = self.product(x).split(self.sizes, dim=-1)
        return parts


class Full(nn.Module):
    """Weights [N, K] that are not packed."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        return F.linear(x, self.weight, self.bias)


class Unpacked(nn.Module):
    """Packed weights that are unpacked before each product."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.format = packed.format
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        return F.linear(x, unpack(self.codes, self.scale, self.format, x.dtype), self.bias)


class Int4(nn.Module):
    """4-bit codes in tinygemm's order; `group` inputs share a scale."""

    codes: Tensor
    scales_and_zeros: Tensor
    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        """Repack the codes in tinygemm's order; those of `packed` are not kept."""
        super().__init__()
        codes = numbers(packed.codes, packed.format)  # int8 [K, N], -8 ... 7
        self.group = len(codes) // len(packed.scale)
        on_gpu = codes.device.type == "cuda"
        dtype = torch.bfloat16 if on_gpu else packed.scale.dtype
        # weight = (code - 8) · scale + zero, with unsigned codes
        scales = torch.stack([packed.scale, torch.zeros_like(packed.scale)], dim=-1).to(dtype)
        self.register_buffer("codes", (_for_gpu if on_gpu else _for_cpu)(codes.T + 8))
        self.register_buffer("scales_and_zeros", scales)
        self.register_buffer("bias", bias)

    @staticmethod
    def takes(packed: Packed) -> bool:
        """Whether tinygemm supports the group and sizes of `packed` on its device."""
        inputs, outputs = packed.codes.shape[0], packed.scale.shape[-1]
        tiles = inputs % 32 == 0 and outputs % 16 == 0
        return tiles and inputs // len(packed.scale) in _INT4_GROUPS and _capable(packed.codes, _AMPERE)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        rows, given = x.flatten(0, -2), (self.codes, self.group, self.scales_and_zeros)
        if x.device.type == "cpu":
            product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, *given)
        elif len(rows) <= _INT4_ROWS:
            product = torch.ops.aten._weight_int4pack_mm(rows.to(torch.bfloat16), *given)
        else:
            product = F.linear(rows, self._unpacked(x.dtype))
        return _finished(product, x, self.bias)

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weights [N, K], unpacked from the tiles."""
        groups = torch.unflatten(from_tiles(self.codes) - 8, -1, (-1, self.group))
        return (groups.to(dtype) * self.scales_and_zeros[..., 0].T[..., None].to(dtype)).flatten(-2)


class Fp8(nn.Module):
    """float8 codes with a scale per output; rows are rounded to float8 with a scale per row."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        """Transpose the codes: the product needs the inputs of an output in contiguous memory."""
        super().__init__()
        self.register_buffer("codes", packed.codes.T.contiguous())
        self.register_buffer("scale", packed.scale.float()[None])
        self.register_buffer("bias", bias)

    @staticmethod
    def takes(packed: Packed) -> bool:
        """Whether PyTorch has a float8 product for the sizes of `packed` on its device."""
        return not any(size % 16 for size in packed.codes.shape) and _capable(packed.codes, _ADA)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        rows = x.flatten(0, -2)
        scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=_SMALLEST) / _LARGEST
        codes = (rows.float() / scale).to(torch.float8_e4m3fn)
        # this product cannot return float16 on a GPU
        dtype = torch.bfloat16 if x.dtype == torch.float16 else x.dtype
        product = torch._scaled_mm(codes, self.codes.T, scale_a=scale, scale_b=self.scale, out_dtype=dtype)
        return _finished(product, x, self.bias)


def packed_product(packed: Packed, bias: Tensor | None) -> nn.Module:
    """The product with `packed` on the device of its tensors."""
    if packed.format == "int4" and Int4.takes(packed):
        return Int4(packed, bias)
    if packed.format == "fp8" and Fp8.takes(packed):
        return Fp8(packed, bias)
    return Unpacked(packed, bias)


def _for_gpu(codes: Tensor) -> Tensor:
    """Unsigned codes [N, K] in the tiles of CUDA's tinygemm."""
    inner = next(tiles for tiles in (8, 4, 2) if codes.shape[1] % (16 * tiles) == 0)
    tiles: Tensor = torch.ops.aten._convert_weight_to_int4pack(in_bytes(codes), inner)
    return tiles


def in_bytes(codes: Tensor) -> Tensor:
    """Pack unsigned codes [N, K] as bytes [N, K / 2], each with two codes, the first in its upper half."""
    first, second = torch.unflatten(codes.to(torch.uint8), -1, (-1, 2)).unbind(-1)
    return (first << 4 | second).contiguous()


def from_tiles(tiles: Tensor) -> Tensor:
    """Unsigned codes [N, K] from CUDA's tiles, int32 [N / 8, K / 16 I, 32, I / 2] with eight codes in each word.

    Lane t of a tile holds output t // 4. A word covers 32 inputs; its code b is input 8 (b % 4) + 2 (t % 4) + b // 4.
    """
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=tiles.device)
    codes = (tiles[..., None] >> shifts) & 15
    axes = (*tiles.shape[:2], 8, 4, tiles.shape[3], 2, 4)  # tile of N, of K, output, t % 4, word, b // 4, b % 4
    return codes.view(axes).permute(0, 2, 1, 4, 6, 3, 5).reshape(8 * len(tiles), -1)


def _for_cpu(codes: Tensor) -> Tensor:
    """Unsigned codes [N, K] in the order of the CPU's tinygemm."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32).contiguous(), 2)
    return packed


def _capable(codes: Tensor, least: tuple[int, int]) -> bool:
    """Whether the GPU of `codes` has at least this compute capability; always true for a CPU."""
    return codes.device.type == "cpu" or torch.cuda.get_device_capability(codes.device) >= least


def _finished(product: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """Add `bias` to a product [M, N] of the rows of `x`, and give it their shape and dtype."""
    rows = product.to(x.dtype).view(*x.shape[:-1], -1)
    return rows if bias is None else rows + bias
