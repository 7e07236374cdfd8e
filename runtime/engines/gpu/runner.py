"""`Runner` runs a program: it stages its small tensors, binds its runs, and records them as CUDA graphs.

    runner = Runner(program, device, {"logits": address}, cuda_graphs=True)
    found = runner.queue(StepShape(profile=0, B=1, R=32, ...), {"canvas": canvas, ...})
    device.synchronise()
    found["token_ids"]                   # [B, R]; valid until the next run

Large tensors stay on the device, at addresses that never change. A shape that repeats is replayed as a CUDA graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dpad.runtime.contract import TensorSpec
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.graphs import Graphs
from dpad.runtime.engines.gpu.program import Program, Run
from dpad.runtime.engines.gpu.staging import Shapes, Staging, bytes_of
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.errors import EngineError


class Runner:
    """Queues the runs of one program on the device's stream, one after the other."""

    def __init__(self, program: Program, device: Device, addresses: Mapping[str, int], cuda_graphs: bool) -> None:
        """`addresses` holds the tensors that stay on the device; the program's other tensors are small and staged."""
        self._program, self._device, self._addresses = program, device, addresses
        self._small_inputs = [spec for spec in program.inputs if spec.name not in addresses]
        self._small_outputs = [spec for spec in program.outputs if spec.name not in addresses]
        self._bound: dict[int, tuple[StepShape, Run]] = {}
        self.graphs = Graphs(device, cuda_graphs and program.records)
        self._sent = Staging(device, self._most(self._small_inputs))
        try:
            self._fetched = Staging(device, self._most(self._small_outputs))
        except EngineError:
            self._sent.close()
            raise

    def check(self, shape: StepShape) -> None:
        """Raise `EngineError` unless `shape` is within the program's limits."""
        shape.check(self._program.limits[shape.profile], self._program.profiles[shape.profile])

    def queue(self, shape: StepShape, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Queue a run of a checked shape; returns the small outputs, which are valid once the device has finished.

        `values` are the small inputs. One may be shorter than its last axis, because the rest is never read.
        """
        given, sent = self._sent.fields(_shapes(self._small_inputs, shape))
        found, fetched = self._fetched.fields(_shapes(self._small_outputs, shape))
        for name, value in values.items():
            given[name].array[..., : value.shape[-1]] = value
        self._sent.upload(sent)
        self._run(shape, {**self._addresses, **{name: field.address for name, field in (given | found).items()}})
        self._fetched.download(fetched)
        return {name: field.array for name, field in found.items()}

    def keep(self) -> None:
        """Save kernels that the program compiled for the next start."""
        self._program.keep()

    def close(self) -> None:
        """Free everything but the program; no queued work may still use it."""
        self.graphs.close()
        self._bound.clear()
        self._sent.close()
        self._fetched.close()

    def _most(self, specs: Sequence[TensorSpec]) -> int:
        """The most bytes that staging `specs` can take."""
        highs = [{axis: high for axis, (_, high) in limits.items()} for limits in self._program.limits]
        return max(bytes_of(_shapes(specs, StepShape(profile, **high))) for profile, high in enumerate(highs))

    def _run(self, shape: StepShape, addresses: Mapping[str, int]) -> None:
        """Queue the shape's CUDA graph if there is one; otherwise queue the run, and record it if it repeats."""
        if self.graphs.launch(shape):
            return
        before, run = self._bound.pop(shape.profile, (None, None))
        if run is None or before != shape:
            run = self._program.bind(shape, addresses)
        run.queue()
        self._bound[shape.profile] = shape, run
        if self.graphs.wanted(shape):
            self._record(shape, addresses)

    def _record(self, shape: StepShape, addresses: Mapping[str, int]) -> None:
        """Record a run of its own. It runs once before, because its one-time preparations cannot be captured."""
        try:
            run = self._program.bind(shape, addresses, own=True)
            run.queue()
        except EngineError as error:
            self.graphs.failed(shape, error)
            return
        self.graphs.capture(shape, run)


def _shapes(specs: Sequence[TensorSpec], shape: StepShape) -> Shapes:
    return {spec.name: (spec.dtype, shape.of(spec.axes)) for spec in specs}
