"""The step for a TensorRT plugin engine: custom nodes in place of the op and its function body.

    path = write_plugin_step(Path("float16/step.onnx"), splits=4)    # float16/step-plugin.onnx

TensorRT looks for a function body before it looks for a plugin, so the body is taken out:
a plugin that is missing is then an error, never silently the native path.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from dpad.plugins import onnx_face
from dpad.plugins.tiling import MAX_SPLITS, scale_bits
from dpad.plugins.trt_face import NAMESPACE, PLUGIN_VERSION
from dpad.runtime.errors import ExportError

FILE_NAME = "step-plugin.onnx"


def write_plugin_step(step: Path, splits: int) -> Path:
    """Write the plugin variant of `step` beside it; weights stay where the step points to.

    Args:
        step: step.onnx of a 16-bit dtype.
        splits: most parts that the keys are split into; 1 keeps one kernel a layer.

    Raises:
        ExportError: the step does not hold the op, or `splits` is out of range.
    """
    if not 1 <= splits <= MAX_SPLITS:
        raise ExportError(f"splits {splits} is outside 1 to {MAX_SPLITS}")
    model = onnx.load(str(step), load_external_data=False)
    bfloat16 = any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer)
    nodes: list[onnx.NodeProto] = []
    narrowed: dict[str, str] = {}
    count = 0
    for node in model.graph.node:
        if (node.domain, node.op_type) != (onnx_face.DOMAIN, onnx_face.OP_TYPE):
            nodes.append(node)
            continue
        nodes += _narrow(node.input[5:], narrowed)
        nodes += _plugins(node, [narrowed[name] for name in node.input[5:]], splits, bfloat16)
        count += 1
    if count == 0:
        raise ExportError(f"{step} has no {onnx_face.OP_TYPE} node; export the bundle again")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [f for f in model.functions if (f.domain, f.name) != (onnx_face.DOMAIN, onnx_face.OP_TYPE)]
    del model.functions[:]
    model.functions.extend(kept)
    target = step.with_name(FILE_NAME)
    onnx.save(model, str(target))
    return target


def _narrow(names: list[str], narrowed: dict[str, str]) -> list[onnx.NodeProto]:
    """Casts of index tensors to int32, once each."""
    casts = []
    for name in names:
        if name not in narrowed:
            narrowed[name] = f"{name}_int32"
            casts.append(helper.make_node("Cast", [name], [narrowed[name]], to=TensorProto.INT32))
    return casts


def _plugins(node: onnx.NodeProto, indices: list[str], splits: int, bfloat16: bool) -> list[onnx.NodeProto]:
    """The nodes that stand for one op: `attend`, or `attend_parts` and `combine_parts`."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    numbers = [scale_bits(attributes["scale"]), attributes.get("block", 0)]
    inputs = [*node.input[:5], *indices]
    if splits == 1:
        return [_plugin("attend", inputs, list(node.output), numbers)]
    parts = [f"{node.output[0]}_partial", f"{node.output[0]}_log_weight"]
    return [
        _plugin("attend_parts", inputs, parts, [*numbers, splits]),
        _plugin("combine_parts", parts, list(node.output), [splits, int(bfloat16)]),
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
