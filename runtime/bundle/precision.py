"""What the name of a step says: the dtype of its rows, and how the weights of its layers are stored.

    step_name("float16", "int4")                  # "float16-weights-int4"
    rows_dtype("float16-weights-int4")            # "float16"
    weights_of("float16-weights-int4")            # "int4"

Rows are what is computed and cached. `FULL` weights have their dtype; in the other formats (models/packed.py) they
are stored in few bits and turned into it where they are multiplied. `DYNAMIC` is another thing: a float32 step whose
rows are rounded to int8 too, so that whole products are of integers (W8A8).
"""

ROWS = ("float32", "float16", "bfloat16")
FULL = "full"
PACKED = ("int8", "int4", "fp8")
DYNAMIC = "w8a8"

_SEPARATOR = "-weights-"


def step_name(dtype: str, weights: str = FULL) -> str:
    """Of the step with rows in `dtype`."""
    return dtype if weights == FULL else f"{dtype}{_SEPARATOR}{weights}"


def rows_dtype(step: str) -> str:
    """Dtype of the rows and caches of a step."""
    return "float32" if step == DYNAMIC else step.partition(_SEPARATOR)[0]


def weights_of(step: str) -> str:
    """Format of the layers' weights of a step: `FULL` or one of `PACKED`."""
    return step.partition(_SEPARATOR)[2] or FULL


def is_quantized(step: str) -> bool:
    """Whether the answers of a step may differ from the checkpoint's by more than the rounding of its dtype."""
    return step == DYNAMIC or weights_of(step) != FULL


def suffix(step: str) -> str:
    """What an engine of a quantized step adds to its name; empty for others."""
    return f"-{DYNAMIC}" if step == DYNAMIC else step[len(rows_dtype(step)) :]
