"""`open_trt_engine` opens a step compiled by TensorRT or TensorRT-RTX as a `GpuEngine`.

engine = open_trt_engine(tensorrt_rtx, bundle / "engines/x.plan", contract, "float16", CudaDevice())
"""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.tensorrt.plan import TrtPlan
from dpad.runtime.engines.tensorrt.program import TrtProgram


def open_trt_engine(
    trt: Any,
    plan: Path,
    contract: StepContract,
    dtype: str,
    device: Device,
    step_onnx: Path | None = None,
    *,
    decide: Path | None = None,
    slots: int | None = None,
    name: str = "tensorrt",
    cuda_graphs: bool = True,
    host_code: bool = False,
    kernel_cache: str | None = None,
) -> GpuEngine:
    """Open `plan`, and the plan `decide`, without which the engine cannot sample.

    The engine takes over `device`, which is closed if this fails. `slots` is the size of the pool; see `pool_size` for
    its default and errors. `TrtPlan` documents the other arguments and errors.
    """
    shared: dict[str, Any] = {"host_code": host_code, "cuda_graphs": cuda_graphs}
    with ExitStack() as opened:
        opened.callback(device.close)
        device.make_current()
        specs = contract.inputs(dtype), contract.outputs(dtype)
        step_plan = TrtPlan(
            trt, plan, *specs, device, profiles=2, step_onnx=step_onnx, kernel_cache=kernel_cache, **shared
        )
        step = opened.enter_context(closing(TrtProgram(step_plan, device, ("refresh", "cached"))))
        decider = None
        if decide is not None:
            specs = contract.decide_inputs(), contract.decide_outputs()
            kernels = kernel_cache and f"decide-{kernel_cache}"
            decide_plan = TrtPlan(trt, decide, *specs, device, kernel_cache=kernels, **shared)
            decider = opened.enter_context(closing(TrtProgram(decide_plan, device, ("decide",))))
        own = opened.pop_all()
    return GpuEngine(name, contract, dtype, device, step, decider, own, slots=slots, cuda_graphs=cuda_graphs)
