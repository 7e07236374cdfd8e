"""The parts of gpu-check for the attention kernel: run gpu.kernels and gpu.ptx and decide what is a failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from gpu import device, kernels
from gpu.session import Session
from gpu.timing import DEVICE

_SPEED = 40.0  # seconds for comparing the kernel's speed with PyTorch's attention


@contextmanager
def substituted(module: ModuleType, **values: Any) -> Iterator[None]:
    """Replace constants of `module` by `values` within the context."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def correctness(session: Session) -> dict[str, Any]:
    """Compare the kernel with the reference definition."""
    with substituted(kernels, **session.setup.sizes.kernels):
        found = kernels.correctness()
    failures = [f"the kernel is wrong at {failure}" for failure in found["failures"][:3]]
    if found["cases"] < found["wanted"] and not session.setup.sizes.kernels:
        failures.append(f"only {found['cases']} of {found['wanted']} cases were compared in time")
    return {**found, "failures": failures}


def ptx(session: Session) -> dict[str, Any]:
    """Launch the plugins' PTX with the CUDA driver alone."""
    if DEVICE == "cpu":
        return {"skipped": "the CUDA driver has no device"}
    from gpu import ptx as launches

    found = launches.correctness(device.identity()["compute_capability"])
    wrong = [name for name, case in found["cases"].items() if not case["relative_rms"] <= case["limit"]]
    return {**found, "failures": [f"the PTX of {name} is wrong" for name in wrong]}


def speed(session: Session) -> dict[str, Any]:
    """Compare the kernel's speed with PyTorch's attention."""
    bandwidth = session.ceiling("read_tb_s")
    with substituted(kernels, **session.setup.sizes.kernels):
        return {"rows": kernels.speed(bandwidth, min(session.left() - 5, _SPEED))}


def sweep(session: Session) -> dict[str, Any]:
    """Time every tile size and number of splits at a few shapes."""
    seconds = min(session.left() - 5, session.setup.sizes.sweep)
    with substituted(kernels, **session.setup.sizes.kernels):
        return {"rows": kernels.sweep(device.identity()["compute_capability"], seconds)}
