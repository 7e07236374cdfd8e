"""`place_packed`: packs weights on the device in seconds, for which the exporter takes minutes on the CPU.

The format is that of models/packed.py. Codes differ from the exporter's (export/step/pack.py) by at most one, so this
is only for random checkpoints.
"""

from pathlib import Path

import torch

from dpad.export.progress import Progress
from dpad.export.step.pack import Packing, layer_weights
from dpad.export.step.weights import convert, write_shard
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.models.checkpoint.headers import read_tensors
from dpad.models.packed import SCALE
from gpu.timing import DEVICE

_LARGEST = 448.0  # largest float8 E4M3


def place_packed(checkpoint: Checkpoint, folder: Path, dtype: str, packing: Packing, progress: Progress) -> list[Path]:
    """Write the shards of `checkpoint` into `folder` with packed layer weights; returns the new files in order."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, rows = set(layer_weights(checkpoint)), getattr(torch, dtype)
    other = getattr(torch, checkpoint.dtype if dtype == "float32" else dtype)
    for shard in checkpoint.shards:
        tensors: dict[str, torch.Tensor] = {}
        with progress.task(f"pack {shard.name} in {packing.format} on {DEVICE}"):
            for name, tensor in read_tensors(shard):
                if name in chosen:
                    codes, scale = pack(tensor.to(DEVICE), packing.format, packing.group, rows)
                    tensors[f"{name}.{packing.format}"], tensors[f"{name}.{SCALE}"] = codes.cpu(), scale.cpu()
                else:
                    tensors[name] = convert(name, tensor, other)
        write_shard(tensors, folder / shard.name)
    return [folder / shard.name for shard in checkpoint.shards]


def pack(weight: torch.Tensor, form: str, group: int, rows: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of `weight` [N, K] in "fp8" or "int4"; see models/packed.py for their shapes."""
    turned = weight.float().T.contiguous()  # [K, N]
    if form == "fp8":
        scale = (turned.abs().amax(dim=0) / _LARGEST).to(rows)
        return (turned / scale.float()).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn), scale
    parts = turned.unflatten(0, (-1, group))  # [K / G, G, N]
    largest = parts.gather(1, parts.abs().argmax(dim=1, keepdim=True))
    scale = (largest / -8).to(rows)
    codes = (parts / scale.float()).round().clamp(-8, 7).to(torch.int8).flatten(0, 1) & 15
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).view(torch.uint8), scale[:, 0]
