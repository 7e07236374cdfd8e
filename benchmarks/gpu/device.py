"""What the GPU is, and what it can do at most: the ceilings that results are held against."""

from importlib import metadata
from typing import Any

import torch

from gpu.timing import DEVICE, interleaved

_LIBRARIES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings")


def describe() -> dict[str, Any]:
    """Names and versions."""
    properties = torch.cuda.get_device_properties(0)
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": properties.L2_cache_size >> 20,
        "cuda": torch.version.cuda,
        "versions": versions,
    }


def ceilings() -> dict[str, float]:
    """Measured here: memory bandwidth (copy, bytes read and written) and bfloat16 matrix products."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    times = interleaved({"copy": [lambda: target.copy_(source)] * 2, "product": [lambda: left @ right] * 2})
    return {
        "bandwidth_tb_s": 2 * source.numel() / times["copy"].median_us / 1e6,
        "bfloat16_tflop_s": 2 * 8192**3 / times["product"].median_us / 1e6,
    }
