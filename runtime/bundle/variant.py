"""Names of the step's variants: each combines the dtype of the rows with the format of the layers' weights.

    variant_name("float16", "int4")               # "float16-weights-int4"
    rows_dtype("float16-weights-int4")            # "float16"
    weights_of("float16-weights-int4")            # "int4"

Rows are what a step computes and caches. `FULL` weights have the dtype of the rows. In the other formats
(models/packed.py) weights are stored in 8 or 4 bits and converted to that dtype where they are multiplied. `DYNAMIC`
is different: a float32 step that rounds its rows to int8 as well, so that its matrix products are integer products.
"""

ROWS = ("float32", "float16", "bfloat16")
FULL = "full"
PACKED = ("int8", "int4", "fp8")
DYNAMIC = "w8a8"

_SEPARATOR = "-weights-"


def variant_name(dtype: str, weights: str = FULL) -> str:
    """Name of the step with rows in `dtype` and weights in the format `weights`."""
    return dtype if weights == FULL else f"{dtype}{_SEPARATOR}{weights}"


def rows_dtype(variant: str) -> str:
    """Dtype of the rows and of the KV cache."""
    return "float32" if variant == DYNAMIC else variant.partition(_SEPARATOR)[0]


def weights_of(variant: str) -> str:
    """Format of the layers' weights: `FULL` or one of `PACKED`."""
    return variant.partition(_SEPARATOR)[2] or FULL


def is_quantized(variant: str) -> bool:
    """Whether results may differ from the checkpoint's by more than the rounding of the dtype."""
    return variant == DYNAMIC or weights_of(variant) != FULL


def suffix(variant: str) -> str:
    """The suffix that an engine of a quantized step adds to its name; empty for other steps."""
    return f"-{DYNAMIC}" if variant == DYNAMIC else variant[len(rows_dtype(variant)) :]
