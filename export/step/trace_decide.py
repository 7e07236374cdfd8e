"""Traces `decide` to ONNX: the second program of a bundle, which has no weights and serves every step.

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

OPSET = 18  # at later ones ONNX Runtime's CUDA provider has no If, Loop, Equal or ReduceMax


class _Decide(nn.Module):
    """`decide` with the confidence of a family."""

    def __init__(self, tempers: bool) -> None:
        super().__init__()
        self.tempers = tempers

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the contract from its inputs."""
        return decide(*inputs, tempers=self.tempers)


def trace_decide(contract: StepContract) -> ir.Model:
    """The program that decides; raises `ExportError` if it cannot be traced."""
    inputs, outputs = tuple(contract.decide_inputs()), tuple(contract.decide_outputs())
    return _trace(inputs, outputs, contract.tempers_confidence).clone()


@cache  # it takes seconds, and models of one vocabulary share it
def _trace(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], tempers: bool) -> ir.Model:
    dims = {axis: torch.export.Dim(axis, min=1) for axis in ("B", "R")}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(spec.axes) if isinstance(axis, str)} for spec in inputs)
    module, examples = _Decide(tempers), tuple(example(spec) for spec in inputs)
    with quiet():
        try:
            # Captured first: the exporter's own way of capturing asks for strides in a loop, which it cannot translate
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
            raise ExportError(f"tracing what decides failed: {error}") from error
        assert program is not None
        settle_shapes(program.model.graph)
        optimizer.optimize_ir(program.model, output_size_limit=FOLD_LIMIT)
        tidy(program.model, "dpad-decide", [*inputs, *outputs])
    program.model.ir_version = IR_VERSION
    return program.model
