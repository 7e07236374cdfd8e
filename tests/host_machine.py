"""A machine with simulated TensorRT-RTX and GPU, for code that opens a bundle itself.

with installed(bundle, "8.9", monkeypatch) as device:
    dpad.load(bundle.directory)
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bundles import deciding
from host_cuda import HostDevice
from host_trt import HostTrt

from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines.gpu import cuda
from dpad.runtime.engines.machine import Gpu, Machine


@contextmanager
def installed(
    bundle: Bundle, capability: str, patch: pytest.MonkeyPatch, dtype: str = "float16", computed: str = "float16"
) -> Iterator[HostDevice]:
    """Simulate TensorRT-RTX and a GPU of `capability` on this machine; at the end all GPU memory must be free.

    A plan with rows in `dtype` runs the bundle's step in the dtype `computed`.
    """
    device = HostDevice()
    step, contract = bundle.path(f"{computed}/step.onnx"), bundle.manifest.contract
    trt = HostTrt(device, step, contract, dtype, rtx=True, decide=deciding(bundle))
    patch.setitem(sys.modules, "tensorrt_rtx", trt)  # type: ignore[arg-type]
    machine = Machine("linux-x86_64", Gpu("simulated", capability), "")
    patch.setattr(Machine, "current", classmethod(lambda cls: machine))
    patch.setattr(cuda, "CudaDevice", lambda: device)
    yield device
    assert device.leaks() == []
