"""`TrtProgram` makes a plan a `Program`, with an execution context for each profile and for each CUDA graph.

program = TrtProgram(plan, device, ("refresh", "cached"))
program.bind(StepShape(profile=0, B=1, R=32, ...), addresses).queue()
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.program import Program, Run
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.tensorrt.plan import TrtPlan
from dpad.runtime.errors import EngineError


class _TrtRun(Run):
    """A context whose shapes and addresses are set."""

    def __init__(self, plan: TrtPlan, context: Any, stream: int) -> None:
        self._plan, self._context, self._stream = plan, context, stream

    def queue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._plan.error("failed in a step")


class TrtProgram(Program):
    """A program that owns its plan.

    A CUDA graph is valid only while the context that it was captured from is not changed, so each has its own context.
    """

    def __init__(self, plan: TrtPlan, device: Device, profiles: Sequence[str]) -> None:
        self.inputs, self.outputs, self.profiles, self.limits = plan.inputs, plan.outputs, profiles, plan.limits
        self.records = not plan.captures_itself
        self._plan, self._stream = plan, device.stream
        try:
            self._contexts = [plan.new_context(profile) for profile in range(len(profiles))]
        except EngineError:
            plan.close()
            raise

    def bind(self, shape: StepShape, addresses: Mapping[str, int], *, own: bool = False) -> Run:
        context = self._plan.new_context(shape.profile) if own else self._contexts[shape.profile]
        self._plan.bind(context, shape, addresses)
        return _TrtRun(self._plan, context, self._stream)

    def keep(self) -> None:
        self._plan.keep_kernels()

    def close(self) -> None:
        self._contexts.clear()
        self._plan.close()
