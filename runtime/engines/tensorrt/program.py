"""`TrtProgram`: a plan made ready to run: its small tensors staged, its contexts, and its recordings.

    program = TrtProgram(plan, device, ("refresh", "cached"), {"logits": address})
    found = program.queue(StepShape(profile=0, B=1, R=32, ...), {"canvas": canvas, ...})
    device.synchronise()
    found["token_ids"]                   # [B, R]; the caller's until the next run

What is large stays on the device, at addresses that never change. A shape that comes again is replayed as a CUDA graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dpad.runtime.contract import TensorSpec
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.graphs import Graphs
from dpad.runtime.engines.gpu.staging import Shapes, Staging, bytes_of
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.tensorrt.plan import TrtPlan
from dpad.runtime.errors import EngineError


class TrtProgram:
    """Runs are queued on the device's stream, one behind the other."""

    def __init__(
        self, plan: TrtPlan, device: Device, profiles: Sequence[str], addresses: Mapping[str, int], cuda_graphs: bool
    ) -> None:
        """`addresses` are those of the tensors that stay on the device; `profiles` are names, for errors."""
        self._plan, self._device, self._profiles, self._addresses = plan, device, profiles, addresses
        self._small_inputs = [spec for spec in plan.inputs if spec.name not in addresses]
        self._small_outputs = [spec for spec in plan.outputs if spec.name not in addresses]
        self._contexts = [plan.new_context(profile) for profile in range(len(profiles))]
        self._bound: list[StepShape | None] = [None] * len(profiles)
        self._graphs = Graphs(device, cuda_graphs and not plan.captures_itself)
        self._sent = Staging(device, self._most(self._small_inputs))
        try:
            self._fetched = Staging(device, self._most(self._small_outputs))
        except EngineError:
            self._sent.close()
            raise

    @property
    def graph_failure(self) -> str | None:
        """Why runs are no longer captured as CUDA graphs; None while they are, or never were to be."""
        return self._graphs.failure

    def check(self, shape: StepShape) -> None:
        """Raise `EngineError` unless the plan takes `shape`."""
        shape.check(self._plan.limits[shape.profile], self._profiles[shape.profile])

    def queue(self, shape: StepShape, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Queue a run of a shape that was checked; the small outputs, which are there when the device has finished.

        `values` are the small inputs. One may be shorter than its last axis: nobody reads what lies behind.
        """
        given, sent = self._sent.fields(_shapes(self._small_inputs, shape))
        found, fetched = self._fetched.fields(_shapes(self._small_outputs, shape))
        for name, value in values.items():
            given[name].array[..., : value.shape[-1]] = value
        addresses = {**self._addresses, **{name: field.address for name, field in (given | found).items()}}
        self._run(shape, addresses, sent, fetched)
        return {name: field.array for name, field in found.items()}

    def close(self) -> None:
        """Free everything but the plan; nothing queued may still use it."""
        self._graphs.close()
        self._contexts.clear()
        self._sent.close()
        self._fetched.close()

    def _most(self, specs: list[TensorSpec]) -> int:
        """Bytes that staging `specs` takes at most."""
        highs = [{axis: high for axis, (_, high) in limits.items()} for limits in self._plan.limits]
        return max(bytes_of(_shapes(specs, StepShape(profile, **high))) for profile, high in enumerate(highs))

    def _run(self, shape: StepShape, addresses: Mapping[str, int], sent: int, fetched: int) -> None:
        """Queue it as a recording if there is one, else eagerly, and record it if it comes again."""
        if self._graphs.launch(shape):
            return
        context = self._contexts[shape.profile]
        if self._bound[shape.profile] != shape:
            self._bound[shape.profile] = None
            self._plan.bind(context, shape, addresses)
            self._bound[shape.profile] = shape
        self._execute(context, sent, fetched)
        if self._graphs.wanted(shape):
            self._capture(shape, addresses, sent, fetched)

    def _capture(self, shape: StepShape, addresses: Mapping[str, int], sent: int, fetched: int) -> None:
        """Record a run in a context of its own.

        A recording holds only while the context it came from is left alone, and a context
        must run once after a change of shape before it may be recorded.
        """
        try:
            context = self._plan.new_context(shape.profile)
            self._plan.bind(context, shape, addresses)
            self._execute(context, sent, fetched)
        except EngineError as error:
            self._graphs.failure = str(error)
            return
        self._graphs.capture(shape, context, lambda: self._execute(context, sent, fetched))

    def _execute(self, context: Any, sent: int, fetched: int) -> None:
        self._sent.upload(sent)
        if not context.execute_async_v3(self._device.stream):
            raise self._plan.error("failed in a step")
        self._fetched.download(fetched)


def _shapes(specs: list[TensorSpec], shape: StepShape) -> Shapes:
    return {spec.name: (spec.dtype, shape.of(spec.axes)) for spec in specs}
