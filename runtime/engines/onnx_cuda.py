"""`open_onnx_cuda` opens a step in ONNX Runtime's CUDA provider as a `GpuEngine`.

engine = open_onnx_cuda(bundle / "float16/step.onnx", contract, "float16", decide=bundle / "decide.onnx")
"""

from contextlib import ExitStack
from pathlib import Path

from dpad.runtime.bundle.variant import rows_dtype, suffix
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.gpu.onnx_program import OnnxProgram
from dpad.runtime.engines.gpu.program import step_limits
from dpad.runtime.engines.onnx_session import check_signature, open_session
from dpad.runtime.errors import EngineUnavailable
from dpad.runtime.extras import install

_MULTIPLE = 4  # Q and K are multiples of 4: the memory-efficient kernel for masked attention requires it of Q + K


def open_onnx_cuda(
    path: Path,
    contract: StepContract,
    variant: str,
    device: Device | None = None,
    *,
    provider: str = "cuda",
    decide: Path | None = None,
    slots: int | None = None,
) -> GpuEngine:
    """Open the step at `path`.

    Args:
        path: the step's ONNX file.
        contract: the step's contract.
        variant: the step's variant.
        device: taken over by the engine, and closed if this fails; None is the first GPU.
        provider: the provider that uses the memory of `device`; with "cpu" the same code runs in host memory.
        decide: the file of the program `decide`; without it the engine cannot sample.
        slots: size of the pool, see `pool_size`.

    Raises:
        EngineUnavailable: this build of ONNX Runtime lacks the provider, or cannot start it.
        EngineError: ONNX Runtime cannot load a file; the message has its own words.
    """
    dtype = rows_dtype(variant)
    with ExitStack() as opened:
        device = device or _cuda_device()
        opened.callback(device.close)
        device.make_current()

        limits = step_limits(contract)
        specs = contract.inputs(dtype), contract.outputs(dtype)
        session = open_session(path, provider)
        check_signature(path, session, *specs)
        step = OnnxProgram(session, provider, device, *specs, limits, _MULTIPLE)
        opened.callback(step.close)
        decider = None
        if decide is not None:
            specs = contract.decide_inputs(), contract.decide_outputs()
            session = open_session(decide, provider)
            check_signature(decide, session, *specs)
            decider = OnnxProgram(session, provider, device, *specs, [{axis: limits[0][axis] for axis in "BR"}])
            opened.callback(decider.close)
        name, own = f"onnxruntime-{provider}{suffix(variant)}", opened.pop_all()
    return GpuEngine(name, contract, dtype, device, step, decider, own, slots=slots)


def _cuda_device() -> Device:
    try:
        from dpad.runtime.engines.gpu.cuda import CudaDevice
    except ModuleNotFoundError as error:
        raise EngineUnavailable(f"ONNX Runtime on CUDA needs cuda-bindings: {install('gpu')}") from error
    return CudaDevice()
