"""Variants of the step, by name: the dtype of the rows, and how the weights of the layers are stored.

    variant_name("float16", "int4")               # "float16-weights-int4"
    rows_dtype("float16-weights-int4")            # "float16"
    weights_of("float16-weights-int4")            # "int4"

Rows are what is computed and cached. `FULL` weights have their dtype; in the other formats (models/packed.py) they
are stored in few bits and turned into it where they are multiplied. `DYNAMIC` is another thing: a float32 step whose
rows are rounded to int8 too, so that whole products are of integers.
"""

ROWS = ("float32", "float16", "bfloat16")
FULL = "full"
PACKED = ("int8", "int4", "fp8")
DYNAMIC = "w8a8"

_SEPARATOR = "-weights-"


def variant_name(dtype: str, weights: str = FULL) -> str:
    """Of the step with rows in `dtype`."""
    return dtype if weights == FULL else f"{dtype}{_SEPARATOR}{weights}"


def rows_dtype(variant: str) -> str:
    """Dtype of the rows and caches."""
    return "float32" if variant == DYNAMIC else variant.partition(_SEPARATOR)[0]


def weights_of(variant: str) -> str:
    """Format of the layers' weights: `FULL` or one of `PACKED`."""
    return variant.partition(_SEPARATOR)[2] or FULL


def is_quantized(variant: str) -> bool:
    """Whether answers may differ from the checkpoint's by more than the rounding of the dtype."""
    return variant == DYNAMIC or weights_of(variant) != FULL


def suffix(variant: str) -> str:
    """What an engine of a quantized step adds to its name; empty for others."""
    return f"-{DYNAMIC}" if variant == DYNAMIC else variant[len(rows_dtype(variant)) :]
