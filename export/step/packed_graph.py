"""Adapts a traced step to packed weights: inserts a DequantizeLinear before every product with one.

    unpack_weights(model, read_headers(shards, packed=True))      # then trace.attach_weights for the rest

The nodes are standard ONNX, so all engines use the same file. ONNX Runtime fuses each pair of DequantizeLinear and
MatMul into its MatMulNBits, except for fp8, which it unpacks in every step. TensorRT reads it as explicit quantization.
"""

import onnx_ir as ir

from dpad.export.step.trace import external
from dpad.models.checkpoint.headers import TensorEntry
from dpad.models.packed import SCALE
from dpad.runtime.bundle.variant import PACKED
from dpad.runtime.errors import ExportError

_CODES = {"int8": ir.DataType.INT8, "int4": ir.DataType.INT4, "fp8": ir.DataType.FLOAT8E4M3FN}


def unpack_weights(model: ir.Model, tensors: dict[str, TensorEntry]) -> None:
    """Replace each weight for which `tensors` has codes and scales by those, and dequantize them in the graph."""
    graph = model.graph
    for name, weight in list(graph.initializers.items()):
        found = next((weights for weights in PACKED if f"{name}.{weights}" in tensors), None)
        if found is not None:
            _unpack(graph, weight, found, tensors[f"{name}.{found}"], tensors[f"{name}.{SCALE}"])


def _unpack(graph: ir.Graph, weight: ir.Value, weights: str, codes: TensorEntry, scale: TensorEntry) -> None:
    """Replace the Transpose of `weight` [N, K] by one DequantizeLinear, whose output is [K, N]."""
    (transpose,) = {use.node for use in weight.uses()}
    if transpose.op_type != "Transpose":
        raise ExportError(f"the traced step uses {weight.name} in {transpose.op_type}, not as the weight of a product")
    inputs, outputs = codes.shape[0], scale.shape[-1]
    axes = {"axis": 1} if len(scale.shape) == 1 else {"axis": 0, "block_size": inputs // scale.shape[0]}
    sources = {
        (name := f"{weight.name}.{weights}"): external(name, codes, _CODES[weights], (inputs, outputs)),
        (name := f"{weight.name}.{SCALE}"): external(name, scale),
    }
    node = ir.node("DequantizeLinear", list(sources.values()), attributes=axes)
    unpacked, turned = node.outputs[0], transpose.outputs[0]
    unpacked.name, unpacked.type = turned.name, turned.type
    turned.replace_all_uses_with(unpacked)
    graph.insert_before(transpose, node)
    graph.remove(transpose, safe=True)
    del graph.initializers[str(weight.name)]
    graph.initializers.update(sources)
