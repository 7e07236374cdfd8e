"""Packs the weights of a checkpoint's layers into int8, int4 or fp8, one shard at a time.

    shards = place_packed(checkpoint, stage / "float32-weights-int4", "float32", Packing("int4"), progress)

Quantization is symmetric, rounds to nearest and needs no calibration data. ONNX Runtime's quantization tools compute
the codes of int4 and int8; torch rounds to float8. models/packed.py describes the layout in the file. Embeddings,
norms, biases and the vocabulary head are not packed: on the embedded models, packing the head in int4 changes the
logits by a third as much as packing all layers does, and the head has only 7 % as many weights.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime.quantization.quant_utils import QuantFormat, quantize_nparray
from torch import nn

from dpad.export.progress import Progress
from dpad.export.step.weights import convert, write_shard
from dpad.models.checkpoint.checkpoint import Checkpoint, meta_model
from dpad.models.checkpoint.headers import read_header, read_tensors
from dpad.models.packed import SCALE, Packed
from dpad.runtime.bundle.variant import PACKED
from dpad.runtime.errors import ExportError

GROUPS = (16, 32, 64, 128, 256)  # group sizes for which ONNX Runtime has kernels
_LARGEST = 448.0  # largest float8 E4M3
_SMALLEST = 2.0**-24  # smallest scale in any dtype: the smallest positive float16


@dataclass(frozen=True)
class Packing:
    """A format of `PACKED`. In int4 and int8, `group` inputs of an output share a scale; in fp8, all of them do."""

    format: str
    group: int = 32

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise `ExportError`, with the way out, if the weights of `checkpoint` cannot be packed in this format."""
        if self.format not in PACKED:
            raise ExportError(f"weights {self.format!r} are not one of {', '.join(PACKED)}")
        if self.group not in GROUPS:
            raise ExportError(f"a group of {self.group} inputs is not one of {', '.join(map(str, GROUPS))}")
        shapes = {name: checkpoint.tensors[name].shape for name in layer_weights(checkpoint)}
        fitting = [size for size in GROUPS if not any(inputs % size for _, inputs in shapes.values())]
        for name, (outputs, inputs) in shapes.items():
            if self.format != "fp8" and inputs % self.group:
                way = f"--group {fitting[-1]}" if fitting else "--weights fp8, which has no groups"
                raise ExportError(
                    f"tensor {name} has {inputs} inputs, which is not a multiple of the group {self.group}; use {way}"
                )
            if self.format == "int4" and outputs % 2:
                raise ExportError(f"tensor {name} has {outputs} outputs, and int4 needs pairs; use --weights int8")

    def pack(self, weight: torch.Tensor, dtype: torch.dtype) -> Packed:
        """Pack `weight` [N, K], whose shape has passed `check`; scales are rounded to `dtype`."""
        turned = np.ascontiguousarray(weight.float().numpy().T)
        codes, scale = _PACK[self.format](turned, self.group, dtype)
        return Packed(self.format, codes, scale)


def layer_weights(checkpoint: Checkpoint) -> list[str]:
    """Names of the weights that are packed: those of all linear layers within the model's transformer blocks."""
    modules = dict(meta_model(checkpoint.architecture, checkpoint.config).named_modules())
    blocks = tuple(f"{path}." for path, module in modules.items() if isinstance(module, nn.ModuleList))
    return [
        f"{path}.weight"
        for path, module in modules.items()
        if isinstance(module, nn.Linear) and path.startswith(blocks)
    ]


def _int4(weight: NDArray[np.float32], group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [K, N / 2] and scales [K / G, N] of `weight` [K, N]; the largest value of a group becomes -8."""
    config = DefaultWeightOnlyQuantConfig(group, is_symmetric=True, quant_format=QuantFormat.QDQ, bits=4)
    codes, scale, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    return torch.from_numpy(codes.reshape(len(weight), -1)), _rounded(torch.from_numpy(scale), dtype)


def _int8(weight: NDArray[np.float32], group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [K, N] and scales [K / G, N] of `weight` [K, N]; the largest value of a group becomes ±127."""
    largest = np.abs(weight).reshape(-1, group, weight.shape[1]).max(axis=1)
    scale = _rounded(torch.from_numpy(largest) / 127, dtype)
    spread = np.repeat(scale.float().numpy(), group, axis=0)
    return torch.from_numpy(quantize_nparray(TensorProto.INT8, weight, spread, 0, -127, 127)), scale


def _fp8(weight: NDArray[np.float32], group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [K, N] and scales [N] of `weight` [K, N]; the largest value of an output becomes ±448."""
    values = torch.from_numpy(weight)
    scale = _rounded(values.abs().amax(dim=0) / _LARGEST, dtype)
    return (values / scale.float()).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scale


def _rounded(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale` rounded to `dtype`, but never to zero, by which the codes would be divided and which TensorRT refuses."""
    return torch.where(scale.abs() < _SMALLEST, _SMALLEST, scale).to(dtype)


def _squares(tensor: torch.Tensor) -> float:
    """Sum of the squares of all values."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


_PACK = {"int8": _int8, "int4": _int4, "fp8": _fp8}


def place_packed(checkpoint: Checkpoint, folder: Path, dtype: str, packing: Packing, progress: Progress) -> list[Path]:
    """Write the shards of `checkpoint` into `folder` with the layers' weights packed; returns the new files in order.

    Memory holds one shard at a time. Other tensors are rounded to `dtype`; for float32 they are left as they are, and
    the step casts them. Raises `ExportError`, naming the tensor, for a value that the dtype cannot hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = set(layer_weights(checkpoint))
    rows, other = getattr(torch, dtype), getattr(torch, checkpoint.dtype if dtype == "float32" else dtype)
    lost = whole = 0.0
    for shard in checkpoint.shards:
        tensors: dict[str, torch.Tensor] = {}
        with progress.task(f"pack {shard.name} in {packing.format}", len(read_header(shard))) as advance:
            for name, tensor in read_tensors(shard):
                if name in chosen:
                    packed = packing.pack(tensor, rows)
                    tensors[f"{name}.{packed.format}"], tensors[f"{name}.{SCALE}"] = packed.codes, packed.scale
                    lost += _squares(packed.unpack(torch.float32) - tensor)
                    whole += _squares(tensor)
                else:
                    tensors[name] = convert(name, tensor, other)
                advance(1)
        write_shard(tensors, folder / shard.name)
    progress.say(f"{packing.format} weights: {len(chosen)} matrices, relative error {(lost / whole) ** 0.5:.2%} (RMS)")
    return [folder / shard.name for shard in checkpoint.shards]
