"""The step for a TensorRT plugin engine: plugin nodes in place of the op's nodes and their function bodies.

    path = write_plugin_step(Path("float16/step.onnx"), splits=4)    # float16/step-plugin.onnx

The function bodies are removed because TensorRT prefers them to plugins. Without them a missing plugin is an error
instead of a silent fallback to native attention. The plugins take the indices themselves and no mask.
"""

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from dpad.plugins import onnx_face
from dpad.plugins.tiling import MAX_SPLITS, scale_bits
from dpad.plugins.trt_face import NAMESPACE, PLUGIN_VERSION
from dpad.runtime.errors import ExportError

FILE_NAME = "step-plugin.onnx"


def write_plugin_step(step: Path, splits: int) -> Path:
    """Write the plugin variant of `step` beside it; it refers to the same weight files.

    Args:
        step: step.onnx of a 16-bit dtype.
        splits: the largest number of parts that the keys are split into; 1 means one kernel per layer.

    Raises:
        ExportError: the step does not contain the op, or `splits` is out of range.
    """
    if not 1 <= splits <= MAX_SPLITS:
        raise ExportError(f"splits {splits} is outside 1 to {MAX_SPLITS}")
    model = onnx.load(str(step), load_external_data=False)
    masks = [node for node in model.graph.node if _is(node, onnx_face.MASK_TYPE)]
    if len(masks) != 1:
        raise ExportError(f"{step} has {len(masks)} {onnx_face.MASK_TYPE} nodes, not one; export the bundle again")
    narrowed = [f"{name}_int32" for name in masks[0].input]
    nodes = [
        helper.make_node("Cast", [name], [narrow], to=TensorProto.INT32)
        for name, narrow in zip(masks[0].input, narrowed)
    ]
    block = _attributes(masks[0]).get("block", 0)
    for node in model.graph.node:
        if _is(node, onnx_face.OP_TYPE):
            nodes += _plugins(node, narrowed, block, splits)
        elif not _is(node, onnx_face.MASK_TYPE):
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [f for f in model.functions if f.domain != onnx_face.DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
    target = step.with_name(FILE_NAME)
    onnx.save(model, str(target))
    return target


def _is(node: onnx.NodeProto, kind: str) -> bool:
    return (node.domain, node.op_type) == (onnx_face.DOMAIN, kind)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _plugins(node: onnx.NodeProto, indices: list[str], block: int, splits: int) -> list[onnx.NodeProto]:
    """The plugin nodes that replace one op: `attend`, or `attend_parts` and `combine_parts`."""
    numbers = [scale_bits(_attributes(node)["scale"]), block]
    inputs = [*node.input[:5], *indices]
    if splits == 1:
        return [_plugin("attend", inputs, list(node.output), numbers)]
    parts = [f"{node.output[0]}_partial", f"{node.output[0]}_log_weight"]
    return [
        _plugin("attend_parts", inputs, parts, [*numbers, splits]),
        _plugin("combine_parts", [*parts, node.input[0]], list(node.output), [splits]),
    ]


def _plugin(name: str, inputs: list[str], outputs: list[str], numbers: list[int]) -> onnx.NodeProto:
    return helper.make_node(
        name,
        inputs,
        outputs,
        domain=onnx_face.DOMAIN,
        plugin_namespace=NAMESPACE,
        plugin_version=PLUGIN_VERSION,
        aot=1,
        numbers=numbers,
    )
