"""The ONNX face of the op: node `SparseSuffixAttention` in domain `dpad`.

    torch.onnx.export(..., custom_translation_table=translation_table())
    model.functions.append(function_proto())     # after the export: see below

The node's meaning travels in the model as an ONNX function over standard operators
(GatherND, Concat, `Attention` of opset 23), so ONNX Runtime and TensorRT-RTX run the file
with no custom code. It is appended after the export, because the exporter's inliner
would dissolve it; a TensorRT plugin engine strips it again, so that a missing plugin is
an error and never silently the function body.
"""

from collections.abc import Callable
from functools import cache

import onnx
import onnx.parser
import torch
from onnxscript import values

import dpad.plugins.attention  # registers the torch op that is translated

DOMAIN = "dpad"
OP_TYPE = "SparseSuffixAttention"
OP_VERSION = 1
OPSET = 23  # the first with Attention and RMSNormalization

_INPUTS = ("query", "key", "value", "key_cache", "value_cache")
_INDICES = ("cache_indices", "gather_indices")

# Shapes: query [B, Q, H, D]; key, value [B, Q, G, D]; caches [B, T, G, D]; S = K + Q.
# A row with nothing to attend gives 0: its softmax is undefined, so the output is selected.
_FUNCTION = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{OP_TYPE} <SETTINGS> ({", ".join(_INPUTS + _INDICES)}) => (output)
{{
    zero = Constant <value_int = 0> ()
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1, 2]> ()
    slots = Max (cache_indices, zero)
    rows = Unsqueeze (slots, last)
    cached_key = GatherND <batch_dims = 1> (key_cache, rows)
    cached_value = GatherND <batch_dims = 1> (value_cache, rows)
    keys = Concat <axis = 1> (cached_key, key)
    values = Concat <axis = 1> (cached_value, value)
    query_heads = Transpose <perm = [0, 2, 1, 3]> (query)
    key_heads = Transpose <perm = [0, 2, 1, 3]> (keys)
    value_heads = Transpose <perm = [0, 2, 1, 3]> (values)
    indices = Concat <axis = 1> (cache_indices, gather_indices)
    attended = GreaterOrEqual (indices, zero)
    attended_row = Unsqueeze (attended, middle)
    batch_count = Shape <start = 0, end = 1> (gather_indices)
    one = Constant <value_ints = [1]> ()
    query_count = Shape <start = 1, end = 2> (gather_indices)
    key_count = Shape <start = 1, end = 2> (indices)
    mask_shape = Concat <axis = 0> (batch_count, one, query_count, key_count)
    MASK
    heads = Attention <scale: float = @scale> (query_heads, key_heads, value_heads, mask)
    tokens = Transpose <perm = [0, 2, 1, 3]> (heads)
    highest = ReduceMax <keepdims = 1> (indices, last)
    anything = GreaterOrEqual (highest, zero)
    anything_row = Unsqueeze (anything, middle)
    floating_zero = CastLike (zero, query)
    output = Where (anything_row, tokens, floating_zero)
}}
"""


_MASK = "mask = Expand (attended_row, mask_shape)"

# With blocks: a new row at position p sees new rows up to the end of p's block; a padded one, all that is named.
_CAUSAL_MASK = """
    everything = Expand (attended_row, mask_shape)
    length = Constant <value_int: int = @block> ()
    blocks = Div (gather_indices, length)
    furthest = Constant <value_int = 9223372036854775807> ()
    padded = Less (gather_indices, zero)
    reach = Where (padded, furthest, blocks)
    outer = Constant <value_ints = [1, 3]> ()
    reach_column = Unsqueeze (reach, outer)
    blocks_row = Unsqueeze (blocks, middle)
    seen = LessOrEqual (blocks_row, reach_column)
    cached_count = Shape <start = 1, end = 2> (cache_indices)
    cached_shape = Concat <axis = 0> (batch_count, one, query_count, cached_count)
    yes = Equal (zero, zero)
    all_cached = Expand (yes, cached_shape)
    all_seen = Concat <axis = 3> (all_cached, seen)
    mask = And (everything, all_seen)
"""


def function_proto(block_causal: bool = False) -> onnx.FunctionProto:
    """The op's meaning over standard operators; append it to `ModelProto.functions`.

    The meaning with blocks costs a comparison of every query with every key, so models without them do not have it.
    """
    settings, mask = (
        ("scale: float = 1.0, block: int = 0", _CAUSAL_MASK) if block_causal else ("scale: float = 1.0", _MASK)
    )
    return onnx.parser.parse_function(_FUNCTION.replace("SETTINGS", settings).replace("MASK", mask))


@cache
def register_schema() -> None:
    """Make the node known to onnx's checker, shape inference and the exporter; once a process."""
    parameter = onnx.defs.OpSchema.FormalParameter
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    onnx.defs.register_schema(
        onnx.defs.OpSchema(
            OP_TYPE,
            DOMAIN,
            OP_VERSION,
            doc="Attention of the new rows over named cache rows and themselves (DPad), causal between blocks if any.",
            inputs=[parameter(n, "T") for n in _INPUTS] + [parameter(n, "I") for n in _INDICES],
            outputs=[parameter("output", "T")],
            type_constraints=[("T", floats, "rows"), ("I", ["tensor(int64)"], "positions")],
            attributes=[
                onnx.defs.OpSchema.Attribute("scale", onnx.defs.OpSchema.AttrType.FLOAT),
                onnx.defs.OpSchema.Attribute("block", onnx.defs.OpSchema.AttrType.INT, required=False),
            ],
        )
    )


def translation_table() -> dict[Callable[..., object], Callable[..., object]]:
    """For `torch.onnx.export(custom_translation_table=...)`: torch op -> ONNX node."""
    register_schema()
    opset = values.Opset(DOMAIN, OP_VERSION)

    def translate(
        query: object,
        key: object,
        value: object,
        key_cache: object,
        value_cache: object,
        cache_indices: object,
        gather_indices: object,
        scale: float,
        block: int = 0,
    ) -> object:
        rows = (query, key, value, key_cache, value_cache)
        blocks = {"block": block} if block else {}
        return getattr(opset, OP_TYPE)(*rows, cache_indices, gather_indices, scale=scale, **blocks)

    return {torch.ops.dpad.sparse_suffix_attention.default: translate}


assert dpad.plugins.attention.sparse_suffix_attention is not None
