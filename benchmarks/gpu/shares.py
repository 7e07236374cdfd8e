"""The time of a step by groups of kernels, from PyTorch's profiler over replays of a recorded step.

A kernel that runs once per step does not belong to a layer but to embedding, head or decisions. The others are grouped
by name.
"""

import re
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu import start
from gpu.session import Session
from gpu.step import Steps
from gpu.timing import DEVICE

GROUPS = (
    ("copies", re.compile(r"memcpy|memset|scatter_rows|copy_rows", re.IGNORECASE)),
    ("attention", re.compile(r"^attend")),
    ("combine", re.compile(r"^combine")),
    ("products", re.compile(r"nvjet|gemm|gemv|cutlass|splitk|scaled_mm|int4|tinygemm|cublas|_mm_|aten::(?:add)?mm")),
)
REST = "norm, rotation, elementwise"
ONCE = "embedding, head and decisions"
_STEPS = 5
_FEW = 3  # a kernel with at most this many runs per step does not belong to a layer

Kernel = tuple[str, float, float]  # name, runs per step, microseconds per step


def measure(session: Session) -> dict[str, Any]:
    """For each cache mode the microseconds of each group, and the longest kernels."""
    model = start.model_of(session)
    steps, found = Steps(model.engine, session.setup.sizes), {}
    for mode in ("prefix", "dual"):
        kernels = _profiled(steps, mode)
        found[mode] = {"groups_us": grouped(kernels), "longest": sorted(kernels, key=lambda k: -k[2])[:20]}
    steps.close()
    return {"engine": model.engine.name, "modes": found}


def grouped(kernels: list[Kernel]) -> dict[str, float]:
    """Microseconds per step of each group."""
    sums = dict.fromkeys([*(name for name, _ in GROUPS), REST, ONCE], 0.0)
    for name, times, microseconds in kernels:
        sums[group_of(name, times)] += microseconds
    return sums


def group_of(name: str, times: float) -> str:
    """The group of a kernel with `times` runs per step."""
    found = next((group for group, pattern in GROUPS if pattern.search(name)), REST)
    return ONCE if times < _FEW and found != "copies" else found


def _profiled(steps: Steps, mode: str) -> list[Kernel]:
    for _ in range(4):
        steps.run(mode)
    activity = ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(_STEPS):
            steps.run(mode)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    spent = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    events = profiler.key_averages()
    return [(event.key[:120], event.count / _STEPS, getattr(event, spent) / _STEPS) for event in events]
