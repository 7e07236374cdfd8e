"""`OnnxProgram` makes a session of ONNX Runtime a `Program` of an engine on a GPU.

program = OnnxProgram(session, "cuda", device, contract.inputs(dtype), contract.outputs(dtype), step_limits(contract))
program.bind(StepShape(profile=0, B=1, R=32, ...), addresses).queue()

Inputs and outputs lie in the engine's memory, where ONNX Runtime reads and writes them; it allocates intermediate
tensors only.
"""

from collections.abc import Mapping, Sequence

import onnxruntime as ort

from dpad.runtime.contract import TensorSpec
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.program import Limits, Program, Run
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.onnx_session import run

_ELEMENT_TYPES = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}  # onnx.TensorProto.DataType
_PROFILES = {1: ("decide",), 2: ("refresh", "cached")}


class _OnnxRun(Run):
    """A run on ONNX Runtime's own stream: `queue` waits for the device's stream, runs, and waits for the run's end."""

    def __init__(self, session: ort.InferenceSession, binding: ort.IOBinding, device: Device) -> None:
        self._session, self._binding, self._device = session, binding, device

    def queue(self) -> None:
        self._device.synchronise()
        run(self._session, self._binding)


class OnnxProgram(Program):
    """A session with limits of one profile (`decide`), or of the two profiles of a step, which run the same code."""

    records = False  # a CUDA graph cannot record runs that allocate and wait

    def __init__(
        self,
        session: ort.InferenceSession,
        place: str,
        device: Device,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        limits: Sequence[Limits],
        multiple: int = 1,
    ) -> None:
        """`place` is ONNX Runtime's name for the kind of memory of `device`, "cuda" or "cpu"."""
        self.inputs, self.outputs, self.limits, self.multiple = inputs, outputs, limits, multiple
        self.profiles = _PROFILES[len(limits)]
        self._session: ort.InferenceSession | None = session
        self._place, self._device = place, device

    def bind(self, shape: StepShape, addresses: Mapping[str, int], *, own: bool = False) -> Run:
        """A run with a binding of its own; it stays valid whether or not `own` is set."""
        assert self._session is not None, "the program is closed"
        binding = self._session.io_binding()
        for bind, specs in ((binding.bind_input, self.inputs), (binding.bind_output, self.outputs)):
            for spec in specs:
                kind, address = _ELEMENT_TYPES[spec.dtype], addresses[spec.name]
                bind(spec.name, self._place, 0, kind, shape.of(spec.axes), address)
        return _OnnxRun(self._session, binding, self._device)

    def close(self) -> None:
        """Drop the session."""
        self._session = None
