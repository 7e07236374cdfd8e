"""Traces `decide` to ONNX: the second program of a bundle, which has no weights and is common to all steps.

model = trace_decide(contract)
onnx_ir.save(model, "decide.onnx")
"""

from functools import cache

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn

from dpad.export.step.shapes import settle_shapes
from dpad.export.step.trace import FOLD_LIMIT, IR_VERSION, example, quiet, tidy
from dpad.models.decide import decide
from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.errors import ExportError

OPSET = 18  # in later opsets ONNX Runtime's CUDA provider lacks If, Loop, Equal and ReduceMax


class _Decide(nn.Module):
    """`decide` as a module, with the family's definition of confidence."""

    def __init__(self, tempers: bool) -> None:
        super().__init__()
        self.tempers = tempers

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the contract's decide outputs from its decide inputs."""
        return decide(*inputs, tempers=self.tempers)


def trace_decide(contract: StepContract) -> ir.Model:
    """The traced `decide`; raises `ExportError` if tracing fails."""
    inputs, outputs = tuple(contract.decide_inputs()), tuple(contract.decide_outputs())
    return _trace(inputs, outputs, contract.tempers_confidence).clone()


@cache  # tracing takes seconds, and models of the same vocabulary share the result
def _trace(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], tempers: bool) -> ir.Model:
    dims = {axis: torch.export.Dim(axis, min=1) for axis in ("B", "R")}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(spec.axes) if isinstance(axis, str)} for spec in inputs)
    module, examples = _Decide(tempers), tuple(example(spec) for spec in inputs)
    with quiet():
        try:
            # Export first: the ONNX exporter's own capture queries strides in a loop, which it cannot translate
            captured = torch.export.export(module, examples, dynamic_shapes=(shapes,))
            program = torch.onnx.export(
                captured,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"tracing decide failed: {error}") from error
        assert program is not None
        settle_shapes(program.model.graph)
        optimizer.optimize_ir(program.model, output_size_limit=FOLD_LIMIT)
        tidy(program.model, "dpad-decide", [*inputs, *outputs])
    program.model.ir_version = IR_VERSION
    return program.model
