"""`GPUS`: figures from NVIDIA's data sheets for the GPUs that `dpad plan` knows.

    gpu = GPUS["H100"]
    gpu.bandwidth, gpu.products

`products` is the rate of dense 16-bit matrix products accumulated in float32. `memory` is what the driver reports.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuModel:
    """Compute capability, memory in MiB, bandwidth in GB/s, and multiply-adds of 16-bit matrices in TFLOP/s."""

    capability: str
    memory: int
    bandwidth: float
    products: float


GPUS = {
    "A10": GpuModel("8.6", 23028, 600, 125),
    "L4": GpuModel("8.9", 23034, 300, 121),
    "L40S": GpuModel("8.9", 46068, 864, 362),
    "RTX-4090": GpuModel("8.9", 24564, 1008, 165.2),
    "RTX-6000-Ada": GpuModel("8.9", 49140, 960, 364.2),
    "RTX-5090": GpuModel("12.0", 32607, 1792, 209.5),
    "A100": GpuModel("8.0", 81920, 2039, 312),
    "H100": GpuModel("9.0", 81559, 3350, 989.4),
    "H200": GpuModel("9.0", 143771, 4800, 989.4),
    "B200": GpuModel("10.0", 183359, 8000, 2250),
}
