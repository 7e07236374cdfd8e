"""Replaces computed shapes of Reshape and Expand in a traced graph by constants.

    settle_shapes(graph)        # while its values still have the tracer's shapes

A tracer computes shapes with small integer nodes, one or more for each size, which a GPU engine runs on the CPU. They
are not needed for an axis that keeps its size: ONNX writes 0 for it in Reshape and 1 in Expand.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

Sizes = Sequence[int | ir.SymbolicDim]


def settle_shapes(graph: ir.Graph) -> None:
    """Give every Reshape and Expand a constant shape where the tracer's shapes allow it."""
    for node in graph.all_nodes():
        before, after = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type not in _CONSTANT or before is None or before.shape is None or after.shape is None:
            continue
        constant = _CONSTANT[node.op_type](before.shape.dims, after.shape.dims)
        if constant is not None:
            shape = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(constant, dtype=np.int64))})
            node.graph.insert_before(node, shape)  # type: ignore[union-attr]
            node.replace_input_with(1, shape.outputs[0])
            node.attributes.pop("allowzero", None)


def _reshaped(before: Sizes, after: Sizes) -> list[int] | None:
    """The shape for Reshape: 0 for each unchanged leading axis, -1 for one dynamic axis; None if more are dynamic."""
    kept = 0
    while kept < min(len(before), len(after)) and before[kept] == after[kept]:
        kept += 1
    sizes = [0] * kept + [size if isinstance(size, int) else -1 for size in after[kept:]]
    return sizes if sizes.count(-1) <= 1 else None


def _expanded(before: Sizes, after: Sizes) -> list[int] | None:
    """The shape for Expand: 1 for each unchanged axis; None if a changed axis is dynamic."""
    missing = len(after) - len(before)
    sizes = []
    for axis, size in enumerate(after):
        if axis >= missing and before[axis - missing] == size:
            sizes.append(1)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            return None
    return sizes


_CONSTANT = {"Reshape": _reshaped, "Expand": _expanded}
