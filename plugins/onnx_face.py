"""The op in ONNX: nodes `SuffixMask` and `SparseSuffixAttention` in domain `dpad`.

    torch.onnx.export(..., custom_translation_table=translation_table())
    for function in function_protos(heads, kv_heads):       # after the export: see below
        model.functions.append(function)

`SuffixMask` computes what depends on the indices alone. It is equal in all layers, so the exporter keeps one node, and
a step computes it once. The model defines both nodes by ONNX functions over standard operators (`Attention` of opset
23), so ONNX Runtime and TensorRT-RTX run the file without custom code. The functions are appended after the export,
because the exporter's inliner would replace the nodes by them. For a TensorRT plugin engine they are removed again, so
that a missing plugin is an error instead of a silent use of the function.
"""

from collections.abc import Callable
from functools import cache

import onnx
import onnx.parser
import torch
from onnxscript import values

import dpad.plugins.attention  # registers the torch op that is translated

DOMAIN = "dpad"
MASK_TYPE = "SuffixMask"
OP_TYPE = "SparseSuffixAttention"
OP_VERSION = 1
OPSET = 23  # the first with Attention and RMSNormalization

# Inputs and outputs of each node, as types and names, and its attributes. T: dtype of the rows; I: int64; B: bool.
_SIGNATURES: dict[str, tuple[str, str, dict[str, onnx.defs.OpSchema.AttrType]]] = {
    MASK_TYPE: (
        "I cache_indices, I gather_indices",
        "I slots, B mask, B anything",
        {"block": onnx.defs.OpSchema.AttrType.INT},
    ),
    OP_TYPE: (
        "T query, T key, T value, T key_cache, T value_cache, I slots, B mask, B anything",
        "T output",
        {"scale": onnx.defs.OpSchema.AttrType.FLOAT},
    ),
}
_TYPES = {"T": ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "I": ["tensor(int64)"], "B": ["tensor(bool)"]}

# query [B, Q, H, D]; key, value [B, Q, G, D]; caches [P, G, D]; slots [B, K]; mask [B, 1, Q, K + Q]; anything
# [B, 1, 1, 1].
# A row with nothing to attend has no defined softmax, so `Where` selects 0 for it.
# Heads stay in the last axis, which is the layout of ONNX Runtime's CUDA kernels: it would transpose other layouts, in
# 6 of 33 launches a layer (traced, 1.31.1). With a mask it uses its memory-efficient kernel if K + Q is a multiple of 4
# and D of 8, and H = G in float32. Its flash kernel accepts no mask, which padding needs; using it for steps without
# padding would take a second graph.
_ATTENTION = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{OP_TYPE} <scale: float = 1.0> (query, key, value, key_cache, value_cache, slots, mask, anything) => (output)
{{
    cached_key = Gather <axis = 0> (key_cache, slots)
    cached_value = Gather <axis = 0> (value_cache, slots)
    keys = Concat <axis = 1> (cached_key, key)
    values = Concat <axis = 1> (cached_value, value)
    flat = Constant <value_ints = [0, 0, -1]> ()
    query_rows = Reshape (query, flat)
    key_rows = Reshape (keys, flat)
    value_rows = Reshape (values, flat)
    rows = Attention <scale: float = @scale, q_num_heads = %HEADS, kv_num_heads = %KV_HEADS> (
        query_rows, key_rows, value_rows, mask)
    apart = Constant <value_ints = [0, 0, %HEADS, -1]> ()
    tokens = Reshape (rows, apart)
    zero = Constant <value_int = 0> ()
    nothing = CastLike (zero, query)
    output = Where (anything, tokens, nothing)
}}
"""

# cache_indices [B, K], gather_indices [B, Q]. ONNX Runtime's CUDA provider has a kernel for every operator used here in
# this opset's version. Its kernels of Equal and, in some releases, ReduceMax are older, so these would run on the CPU.
# Arithmetic on shapes would run there too: a mask that is true everywhere is made by comparing a tensor with itself,
# and And broadcasts it.
_SUFFIX_MASK = f"""
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{MASK_TYPE} %SETTINGS (cache_indices, gather_indices) => (slots, mask, anything)
{{
    zero = Constant <value_int = 0> ()
    slots = Max (cache_indices, zero)
    indices = Concat <axis = 1> (cache_indices, gather_indices)
    named = GreaterOrEqual (indices, zero)
    middle = Constant <value_ints = [1, 2]> ()
    named_row = Unsqueeze (named, middle)
    outer = Constant <value_ints = [1, 3]> ()
    every_query = GreaterOrEqual (gather_indices, gather_indices)
    every_column = Unsqueeze (every_query, outer)
    %MASK
    last = Constant <value_ints = [-1]> ()
    marks = Cast <to = 1> (named)
    count = ReduceSum <keepdims = 1> (marks, last)
    none = Constant <value_float = 0.0> ()
    any_named = Greater (count, none)
    anything = Unsqueeze (any_named, middle)
}}
"""

_ALL = "mask = And (every_column, named_row)"

# With blocks: a new row at position p sees new rows up to the end of p's block; a padded row sees all named rows.
_CAUSAL = """
    length = Constant <value_int: int = @block> ()
    blocks = Div (gather_indices, length)
    furthest = Constant <value_int = 9223372036854775807> ()
    padded = Less (gather_indices, zero)
    reach = Where (padded, furthest, blocks)
    reach_column = Unsqueeze (reach, outer)
    blocks_row = Unsqueeze (blocks, middle)
    seen = LessOrEqual (blocks_row, reach_column)
    every_slot = GreaterOrEqual (cache_indices, cache_indices)
    every_row = Unsqueeze (every_slot, middle)
    all_cached = And (every_column, every_row)
    all_seen = Concat <axis = 3> (all_cached, seen)
    mask = And (all_seen, named_row)
"""


def function_protos(heads: int, kv_heads: int, block_causal: bool = False) -> list[onnx.FunctionProto]:
    """ONNX functions that define the nodes by standard operators; append them to `ModelProto.functions`.

    They fit a model with H = `heads` and G = `kv_heads`. `block_causal` adds a comparison of every query with every
    key, which other models do not need.
    """
    settings, mask = ("<block: int = 0>", _CAUSAL) if block_causal else ("", _ALL)
    attention = _ATTENTION.replace("%HEADS", str(heads)).replace("%KV_HEADS", str(kv_heads))
    texts = _SUFFIX_MASK.replace("%SETTINGS", settings).replace("%MASK", mask), attention
    return [onnx.parser.parse_function(text) for text in texts]


@cache
def register_schema() -> None:
    """Register the nodes for onnx's checker, shape inference and the exporter; once per process."""
    for name, (inputs, outputs, attributes) in _SIGNATURES.items():
        both = [[one.split() for one in text.split(", ")] for text in (inputs, outputs)]
        used = {kind for side in both for kind, _ in side}
        onnx.defs.register_schema(
            onnx.defs.OpSchema(
                name,
                DOMAIN,
                OP_VERSION,
                inputs=[onnx.defs.OpSchema.FormalParameter(n, kind) for kind, n in both[0]],
                outputs=[onnx.defs.OpSchema.FormalParameter(n, kind) for kind, n in both[1]],
                type_constraints=[(kind, types, "") for kind, types in _TYPES.items() if kind in used],
                attributes=[onnx.defs.OpSchema.Attribute(n, kind, required=False) for n, kind in attributes.items()],
            )
        )


def translation_table() -> dict[Callable[..., object], Callable[..., object]]:
    """The table for `torch.onnx.export(custom_translation_table=...)`: torch op -> ONNX nodes."""
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
        blocks = {"block": block} if block else {}
        shared = getattr(opset, MASK_TYPE)(cache_indices, gather_indices, **blocks)
        return getattr(opset, OP_TYPE)(query, key, value, key_cache, value_cache, *shared, scale=scale)

    return {torch.ops.dpad.sparse_suffix_attention.default: translate}


assert dpad.plugins.attention.sparse_suffix_attention is not None
