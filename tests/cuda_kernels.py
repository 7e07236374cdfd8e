"""The operators that ONNX Runtime's CUDA provider has, to check that no part of a step runs on the CPU.

    assert not lacking(onnx.load("step.onnx", load_external_data=False))

A kernel is registered for one version of an operator, or a range of versions, and for some types. A node without a
kernel is silently assigned to the CPU. The CUDA provider of ONNX Runtime 1.27.0, 1.28.0 and 1.31.1 accepted everything
listed here. This was tried without a GPU, with `session.disable_cpu_ep_fallback`, which refuses a model with a node on
the CPU, including computed shapes. 1.26.0 lacks Cos and Sin of this version, and 1.24.4 lacks Attention with such a
mask.
"""

import onnx
import onnx.inliner
from onnx import TensorProto

_FLOATS = ("float", "float16", "bfloat16")

# Operator and the version that introduced its current form -> types of its inputs and outputs; T is any of _FLOATS.
KERNELS = {
    "Add 14": ("T", "int64"),
    "And 7": ("bool",),
    "ArgMax 13": ("float int64",),
    "Attention 23": ("T bool",),
    "Cast 13": ("bool float", "bool int64", "float int64"),
    "Cast 23": ("T float", "bool float", "float int64"),
    "CastLike 23": ("T int64",),
    "Clip 13": ("int64",),
    "Concat 13": ("T", "bool", "int64"),
    "Cos 22": ("float",),
    "CumSum 14": ("float int64",),
    "Div 14": ("float", "int64"),
    "Equal 13": ("bool int64",),
    "Exp 13": ("float",),
    "Expand 13": ("bool int64", "float int64", "int64"),
    "Gather 13": ("T int64",),
    "GatherElements 13": ("T int64", "int64"),
    "Greater 13": ("bool float", "bool int64"),
    "GreaterOrEqual 16": ("bool float", "bool int64"),
    "If 16": ("bool float",),
    "Less 13": ("bool float", "bool int64"),
    "LessOrEqual 16": ("bool float", "bool int64"),
    "Log 13": ("float",),
    "Loop 16": ("bool float int64",),
    "MatMul 13": ("T",),
    "Max 13": ("float", "int64"),
    "Min 13": ("float",),
    "Mul 14": ("T", "int64"),
    "Neg 13": ("float",),
    "Or 7": ("bool",),
    "RMSNormalization 23": ("T",),
    "ReduceMax 18": ("float int64", "int64"),
    "ReduceSum 13": ("float int64", "int64"),
    "Reshape 14": ("float int64",),
    "Reshape 23": ("T int64",),
    "RotaryEmbedding 23": ("float",),
    "ScatterElements 18": ("float int64",),
    "Shape 15": ("float int64",),
    "Shape 23": ("int64",),
    "Sigmoid 13": ("T",),
    "Sin 22": ("float",),
    "Slice 13": ("float int64",),
    "Squeeze 13": ("float int64", "int64"),
    "Squeeze 23": ("float int64",),
    "Sub 14": ("float",),
    "TopK 11": ("float int64",),
    "Transpose 23": ("T",),
    "Unsqueeze 13": ("bool int64", "float int64", "int64"),
    "Unsqueeze 23": ("bool int64", "int64"),
    "Where 16": ("T bool", "bool int64"),
}


def lacking(model: onnx.ModelProto) -> set[str]:
    """Operators of a model, its functions and its branches that are not in `KERNELS`, and arithmetic on shapes.

    The outputs of Shape are on the host, so the provider assigns operations on them to the CPU. A shape may therefore
    only go directly into a node that takes a shape.
    """
    model = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model), strict_mode=True)
    version = next(opset.version for opset in model.opset_import if not opset.domain)
    return set(_lacking(model.graph, version, {}))


def _lacking(graph: onnx.GraphProto, version: int, outer: dict[str, str]) -> list[str]:
    values = [*graph.input, *graph.output, *graph.value_info]
    numbers = {value.name: value.type.tensor_type.elem_type for value in values}
    numbers |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    types = outer | {name: TensorProto.DataType.Name(number).lower() for name, number in numbers.items()}
    found, shapes = [], {node.output[0] for node in graph.node if node.op_type == "Shape"}
    for node in graph.node:
        if shapes.intersection(node.input) and node.op_type not in ("Expand", "Reshape"):
            found.append(f"{node.op_type} of a shape")
        if node.op_type != "Constant":
            since = onnx.defs.get_schema(node.op_type, version, "").since_version
            kinds = {types[name] for name in (*node.input, *node.output) if name}
            allowed = [
                set(kind.replace("T", real).split())
                for kind in KERNELS.get(f"{node.op_type} {since}", ())
                for real in _FLOATS
            ]
            if kinds not in allowed:
                found.append(f"{node.op_type} {since} of {' '.join(sorted(kinds))}")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _lacking(attribute.g, version, types)
    return found
