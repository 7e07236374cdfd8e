"""Emulates a bfloat16 step in ONNX Runtime on a CPU, where it has no bfloat16 arithmetic.

    engine = emulated_engine(path, contract)      # of a bfloat16/step.onnx

Every operator computes in float32 and rounds its result to bfloat16, as hardware with float32 accumulation does.
Attention is one operator, so only its result is rounded. Weights are read as they are stored. An emulated step is
slower than a float32 step; it checks the graph's types and casts and how rounding errors grow.
"""

from pathlib import Path

import onnx_ir as ir

from dpad.export.step.trace import cast_weight
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.onnx import OnnxEngine

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
_MOVES = {"Gather", "GatherElements", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}  # nothing to round


def emulated_engine(path: Path, contract: StepContract, decide: Path | None = None) -> OnnxEngine:
    """An engine of ONNX Runtime on the CPU for the bfloat16 step at `path`; its input and output rows are float32."""
    return OnnxEngine(path, contract, "float32", model=emulated(path), decide=decide)


def emulated(path: Path) -> bytes:
    """The serialized model at `path`, changed to compute in float32 and round every result; same external weights."""
    model = ir.load(path)
    graph = model.graph
    for value in graph.inputs:
        _widen(value)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == _NARROW:
                _widen(value)
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", _WIDE)
                if node.op_type not in _MOVES:
                    _round(graph, node, value)
    for value in list(graph.initializers.values()):
        if value.dtype == _NARROW:
            cast_weight(graph, value, _NARROW, _WIDE)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _widen(value: ir.Value) -> None:
    if value.dtype == _NARROW:
        value.dtype = _WIDE


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Insert a rounding to bfloat16 between `value`, an output of `node`, and its users; the result takes its name."""
    narrow = ir.node("Cast", [value], attributes={"to": int(_NARROW)})
    wide = ir.node("Cast", narrow.outputs, attributes={"to": int(_WIDE)})
    narrow.outputs[0].dtype, wide.outputs[0].dtype = _NARROW, _WIDE
    value.replace_all_uses_with(wide.outputs[0], replace_graph_outputs=True)
    narrow.replace_input_with(0, value)
    wide.outputs[0].name, wide.outputs[0].shape = value.name, value.shape
    value.name, narrow.outputs[0].name = f"{value.name}.exact", f"{value.name}.bfloat16"
    graph.insert_after(node, [narrow, wide])
