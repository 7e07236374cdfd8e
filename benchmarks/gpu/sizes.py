"""`Sizes`: the sizes for gpu-check, and small ones for a rehearsal on a CPU.

FULL.prompt, FULL.canvas
REHEARSAL       # runs the same code in seconds; its numbers mean nothing
"""

from dataclasses import dataclass, field
from typing import Any

# Literal names, since this file must not import dpad, whose import is timed.
_EVERY, _SOME = ("full", "int8", "int4", "fp8"), ("full", "fp8")  # on a CPU an int4 step takes seconds


PER_PASS = 4  # tokens that a pass of the large model commits


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Attributes:
        limit: seconds of a group; with imports before it and the page after it, these become 200.
        engine: engine of the large model.
        model: the large model, a layout of `dpad synth` or an embedded checkpoint.
        dtype: dtype of its step; `full`, `packed`: formats of weights in its two bundles; `longest`: their canvas.
        prompt, new, kept: numbers of prompt tokens, new tokens, and suffix tokens that DPad keeps.
        at_once: numbers of concurrent requests; `at_once_new`: new tokens of each.
        batch: most sequences of its step.
        read: bytes that the ceilings read; `product`: rows and columns of the matrices that they multiply.
        tiny_new: new tokens of the embedded model's decodes; `tiny_weights`, `tiny_length`: formats of weights, and
            the longest canvas, of its bundle.
        dtypes: dtypes of the embedded model's steps.
        rounds: rounds of a timed step; `sweep`: seconds for trying tiles.
        kernels: values that replace constants of gpu.kernels.
    """

    limit: float = 190.0
    engine: str = "torch-cuda"
    model: str = "llada"
    dtype: str = "bfloat16"
    full: tuple[str, ...] = ("full",)
    packed: tuple[str, ...] = ("fp8", "int4")
    longest: int | None = None
    prompt: int = 512
    new: int = 512
    kept: int = 96
    at_once: tuple[int, ...] = (1, 4, 8, 16)
    at_once_new: int = 256
    batch: int = 16
    read: int = 4 << 30
    product: int = 8192
    tiny_new: int = 64
    tiny_weights: tuple[str, ...] = _EVERY
    tiny_length: int = 512
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    rounds: int = 30
    sweep: float = 60.0
    kernels: dict[str, Any] = field(default_factory=dict)

    @property
    def canvas(self) -> int:
        """The number of tokens of the large model's canvas."""
        return self.prompt + self.new

    @property
    def passes(self) -> int:
        """The number of passes of the large model's decodes."""
        return self.new // PER_PASS


FULL = Sizes()
REHEARSAL = Sizes(
    limit=3600.0,
    engine="torch-cpu",
    model="tiny",
    dtype="float32",
    full=_SOME,
    packed=_SOME,
    longest=128,
    prompt=32,
    new=64,
    kept=16,
    at_once=(1, 2),
    at_once_new=32,
    batch=4,
    read=1 << 20,
    product=64,
    tiny_new=32,
    tiny_weights=_SOME,
    tiny_length=128,
    dtypes=("float32",),
    rounds=2,
    sweep=1.0,
    kernels={
        "MODELS": {"llada-8b": (1, 1, 16), "dream-7b": (2, 1, 16)},
        "QUERIES": (4,),
        "CACHED": (16,),
        "SWEPT": (("llada-8b", 4, 16),),
        "SPLITS": (1, 2),
        "SECONDS": 1.0,
    },
)
