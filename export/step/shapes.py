"""Shapes in a traced graph that need no arithmetic: what a reshape leaves alone is said to be left alone.

    settle_shapes(graph)        # while its values still have the tracer's shapes

A tracer asks for every size of a shape and puts them together again, in small nodes on integers. An engine on a GPU
runs those on the CPU. ONNX has a word for an axis that stays: 0 in Reshape, 1 in Expand.
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
    """0 for each leading axis that stays, -1 for one more that has no fixed size; None where there are several."""
    kept = 0
    while kept < min(len(before), len(after)) and before[kept] == after[kept]:
        kept += 1
    sizes = [0] * kept + [size if isinstance(size, int) else -1 for size in after[kept:]]
    return sizes if sizes.count(-1) <= 1 else None


def _expanded(before: Sizes, after: Sizes) -> list[int] | None:
    """1 for each axis that stays; None where one without a fixed size does not."""
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
