"""Identifies the GPU, and measures its peak bandwidth and product rate, to which results are compared."""

import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

from gpu.session import Session
from gpu.timing import DEVICE, interleaved

LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)


def identity() -> dict[str, Any]:
    """Name, driver and properties of the device, and versions of the libraries."""
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    versions["torch"] = str(torch.__version__)  # includes the build, unlike the package's version
    return {**_facts(), "python": platform.python_version(), "versions": versions}


def _facts() -> dict[str, Any]:
    if DEVICE == "cpu":
        return {"device": "rehearsal on a CPU", "driver": None, "compute_capability": "9.0"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "driver": _driver(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": properties.L2_cache_size >> 20,
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return told.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def ceilings(session: Session) -> dict[str, Any]:
    """Measured peaks of this device: bandwidth of reading and of copying, and the rate of matrix products.

    Reading is measured in two ways, by a maximum and by a product with a vector; `read_tb_s` is the better one, from
    which floors are computed. A copy counts both its read and its written bytes.
    """
    sizes, half = session.setup.sizes, torch.bfloat16
    large = torch.ones(sizes.read // 4, dtype=torch.float32, device=DEVICE)
    source = large[: max(1, len(large) // 4)]
    target, weights = torch.empty_like(source), large.view(half)[: len(large)].view(-1, sizes.product)
    vector = torch.ones(sizes.product, dtype=half, device=DEVICE)
    left, right = (torch.randn(sizes.product, sizes.product, dtype=half, device=DEVICE) for _ in range(2))
    times = interleaved(
        {
            "max": [large.max],
            "gemv": [lambda: weights @ vector],
            "copy": [lambda: target.copy_(source)] * 2,
            "product": [lambda: left @ right] * 2,
        },
        rounds=9,
    )
    microseconds = {name: value.median_us for name, value in times.items()}
    reading = {
        "read_max_tb_s": large.nbytes / microseconds["max"] / 1e6,
        "read_gemv_tb_s": weights.nbytes / microseconds["gemv"] / 1e6,
    }
    return {
        "read_tb_s": max(reading.values()),
        **reading,
        "copy_tb_s": 2 * source.nbytes / microseconds["copy"] / 1e6,
        "bfloat16_tflop_s": 2 * sizes.product**3 / microseconds["product"] / 1e6,
    }
