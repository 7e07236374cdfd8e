"""`TorchProgram` and `TorchDecide`: a step compiled in regions, and `decide` on its logits, as an engine's programs.

    program = TorchProgram(model, contract, "bfloat16", TorchDevice("cuda"))
    program.bind(StepShape(profile=0, B=1, R=32, ...), addresses).queue()

A run works on views of the engine's memory. Between the regions it calls the attention op, which is the Triton kernel
on a GPU and the reference definition on a CPU.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dpad.models.checkpoint.checkpoint import Model
from dpad.models.compiled.device import TorchDevice
from dpad.models.compiled.regions import Regions
from dpad.models.decide import decide
from dpad.plugins.attention import sparse_suffix_attention
from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.gpu.program import Program, Run, step_limits
from dpad.runtime.engines.gpu.step_shape import StepShape


class TorchProgram(Program):
    """The step of one model. It has the two profiles of a plan, which run the same code here."""

    def __init__(
        self, model: Model, contract: StepContract, dtype: str, device: TorchDevice, compiled: bool = True
    ) -> None:
        """`model` computes in `dtype` on `device`; see `Regions` for `compiled`."""
        self.inputs, self.outputs = contract.inputs(dtype), contract.outputs(dtype)
        self.profiles, self.limits = ("refresh", "cached"), step_limits(contract)
        self.records = device.device.type == "cuda"
        self._device, self._block = device, model.config.block_length
        self._regions: Regions | None = Regions(model, compiled)

    def bind(self, shape: StepShape, addresses: Mapping[str, int], *, own: bool = False) -> Run:
        """A run with views of its own; it stays valid whether `own` is set or not."""
        assert self._regions is not None, "the program is closed"
        views = _views(self._device, (*self.inputs, *self.outputs), shape, addresses)
        return _Step(self._device, self._regions, self._block, views)

    def close(self) -> None:
        """Release the weights, except for those that runs still hold."""
        self._regions = None


class _Step(Run):
    """A step over `views` of all the contract's tensors, in the contract's order."""

    def __init__(self, device: TorchDevice, regions: Regions, block: int, views: list[Tensor]) -> None:
        self._device, self._regions, self._block = device, regions, block
        self._canvas, self._gather, self._cached, self._decoded, *others = views
        count = (len(others) - 3) // 2
        self._pool, answers, self._new = others[:count], others[count : count + 3], others[count + 3 :]
        with device.running():
            self._answers = [tensor.flatten(0, 1) for tensor in answers]
            self._new_rows = [tensor.flatten(0, 1) for tensor in self._new]
            batch, queries = self._gather.shape
            self._starts = torch.arange(batch, device=self._gather.device)[:, None] * queries

    def queue(self) -> None:
        with self._device.running():
            x, attended = self._layers()
            rows = (self._decoded.clamp(min=0) + self._starts).flatten()
            self._regions.last(x.index_select(0, rows), attended.index_select(0, rows), *self._answers)

    def _layers(self) -> tuple[Tensor, Tensor]:
        """The inputs of the last region: hidden rows [M, C], and the last attention's result [M, H, D]."""
        positions = self._gather.clamp(min=0)
        ids = self._canvas.gather(1, positions)
        x, query, cos, sin = self._regions.first(ids.flatten(), positions.flatten(), *self._new_rows[:2])
        last = len(self._new) // 2 - 1
        for layer in range(last):
            following = self._new_rows[2 * layer + 2 : 2 * layer + 4]
            x, query = self._regions.between(layer, x, self._attended(layer, query), cos, sin, *following)
        return x, self._attended(last, query)

    def _attended(self, layer: int, query: Tensor) -> Tensor:
        """The result of a layer's attention for `query` [M, H, D], in the same shape."""
        new, pool = (tensors[2 * layer : 2 * layer + 2] for tensors in (self._new, self._pool))
        query = query.view(*self._gather.shape, *query.shape[1:])
        scale = query.shape[-1] ** -0.5
        out: Tensor = sparse_suffix_attention(query, *new, *pool, self._cached, self._gather, scale, self._block)
        return out.flatten(0, 1)


class TorchDecide(Program):
    """`decide`, uncompiled and without recordings, since it branches on whether a row has a filter.

    The price is the launch overhead of its operations in steps that draw or filter tokens. A form without branches
    would rank every row and search every threshold to the end even if no row has a filter.
    """

    def __init__(self, contract: StepContract, device: TorchDevice) -> None:
        self.inputs, self.outputs = contract.decide_inputs(), contract.decide_outputs()
        limits = step_limits(contract)[0]
        self.profiles, self.limits = ("decide",), [{axis: limits[axis] for axis in "BR"}]
        self.records = False
        self._device, self._tempers = device, contract.tempers_confidence

    def bind(self, shape: StepShape, addresses: Mapping[str, int], *, own: bool = False) -> Run:
        """A run with views of its own; it stays valid whether `own` is set or not."""
        given, found = (_views(self._device, specs, shape, addresses) for specs in (self.inputs, self.outputs))
        return _Decision(self._device, given, found, self._tempers)

    def close(self) -> None:
        """Do nothing: the program holds nothing."""


class _Decision(Run):
    def __init__(self, device: TorchDevice, given: list[Tensor], found: list[Tensor], tempers: bool) -> None:
        self._device, self._given, self._found, self._tempers = device, given, found, tempers

    def queue(self) -> None:
        with self._device.running():
            for place, made in zip(self._found, decide(*self._given, tempers=self._tempers)):
                place.copy_(made)


def _views(
    device: TorchDevice, specs: Sequence[TensorSpec], shape: StepShape, addresses: Mapping[str, int]
) -> list[Tensor]:
    with device.running():
        return [device.tensor(addresses[spec.name], getattr(torch, spec.dtype), shape.of(spec.axes)) for spec in specs]
