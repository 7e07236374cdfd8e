"""`ExportSettings`: the options of an export, with their defaults and limits.

settings = ExportSettings(targets=("onnx", "tensorrt-rtx")).resolved(checkpoint)
settings.steps()        # ("float32", "float16")
"""

from dataclasses import dataclass, field, replace

from dpad.export.engines.recipe import HALF, EngineRecipe
from dpad.export.step.pack import Packing
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.bundle.variant import DYNAMIC, FULL, PACKED, ROWS, variant_name
from dpad.runtime.checks import is_integer
from dpad.runtime.errors import ExportError

TARGETS = ("onnx", "tensorrt-rtx", "tensorrt")
DTYPES = (*ROWS, DYNAMIC)
WEIGHTS = (FULL, *PACKED)
INT8 = "int8 is not a dtype of a step; use --dtype w8a8 for integer matrix products or --weights int8 for int8 weights"
# RoPE computes with positions in float32, which holds integers exactly up to 2**24; a workspace is in MiB.
LARGEST = {"max_batch": 2**16, "max_length": 2**24, "block_length": 2**24, "window": 2**24, "workspace": 2**24}
_OPTIONS = {"targets": "target", "dtypes": "dtype", "capabilities": "compute-capability"}  # others: the field's name


@dataclass(frozen=True)
class ExportSettings:
    """What to export. An empty tuple means a default chosen from the checkpoint and this machine.

    Attributes:
        targets: `onnx` (always in the bundle), `tensorrt-rtx`, `tensorrt`.
        dtypes: dtypes of the step; the default is the checkpoint's dtype, and also float16 if that is float32 and
            engines are compiled. `w8a8` is made from the float32 step, which is then exported too.
        capabilities: compute capabilities of the engines, or `portable`; see `EngineRecipe.compiled` for the defaults.
        max_batch, max_length: limits of the contract, in sequences and canvas tokens; max_length None means the
            checkpoint's trained length, at most 4096.
        block_length, window: the sizes, in tokens, for which compiled engines are tuned.
        attention: `native` or `plugin`, for compiled engines.
        flags: how compiled engines are built.
        weights: formats of the layers' weights, each combined with every dtype: `full`, or packed as `int8`, `int4` or
            `fp8`.
        group: number of inputs that share a scale in int4 and int8.
        chat_template: name of one of the checkpoint's chat templates; None means its default.
    """

    targets: tuple[str, ...] = ("onnx",)
    dtypes: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    max_batch: int = 4
    max_length: int | None = None
    block_length: int = 32
    window: int = 256
    attention: str = "native"
    flags: BuildFlags = field(default_factory=BuildFlags)
    weights: tuple[str, ...] = (FULL,)
    group: int = 32
    chat_template: str | None = None

    def arguments(self) -> list[str]:
        """The arguments of `dpad export` with the same meaning, such as `--max-batch=8`; defaults are left out."""
        default, asked = ({**vars(each), **vars(each.flags)} for each in (ExportSettings(), self))
        if "tensorrt" in self.targets:
            del asked["capabilities"]  # TensorRT builds for this machine's GPU, which is the default
        words = []
        for name, value in asked.items():
            if name != "flags" and value != default[name]:
                option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
                values = value if isinstance(value, tuple | list) else [value]
                words += [option if each is True else f"{option}={each}" for each in values]
        return words

    def steps(self) -> tuple[str, ...]:
        """Names of the steps: every dtype with every format of weights; w8a8 is last, since it is made from float32."""
        names = [variant_name(d, w) for w in self.weights for d in self.dtypes if w == FULL or d != DYNAMIC]
        return tuple(sorted(dict.fromkeys(names), key=lambda name: name == DYNAMIC))

    def recipe(self) -> EngineRecipe:
        """The options of compiled engines."""
        return EngineRecipe(self.targets, self.steps(), self.capabilities, self.attention, self.flags)

    def resolved(self, checkpoint: Checkpoint) -> "ExportSettings":
        """A copy with every default filled in; raises `ExportError` for values that cannot work."""
        if "int8" in self.dtypes:
            raise ExportError(INT8)
        for kind, values, known in (
            ("target", self.targets, TARGETS),
            ("dtype", self.dtypes, DTYPES),
            ("weights", self.weights, WEIGHTS),
        ):
            if unknown := [value for value in values if value not in known]:
                raise ExportError(f"{kind} {unknown[0]!r} is not one of {', '.join(known)}")
        self._check_numbers()
        self._check_weights(checkpoint)
        self.recipe().check()
        compiled = [target for target in self.targets if target != "onnx"]
        dtypes = self.dtypes or (checkpoint.dtype,)
        if compiled and not any(dtype in HALF for dtype in dtypes):
            if self.dtypes:
                raise ExportError(f"{compiled[0]} needs float16 or bfloat16 (add --dtype float16)")
            dtypes = (*dtypes, "float16")
        if DYNAMIC in dtypes and "float32" not in dtypes:
            dtypes = (*dtypes, "float32")
        longest = self.max_length or min(checkpoint.config.max_length, 4096)
        if longest < checkpoint.config.block_length:
            raise ExportError(f"max_length {longest} is less than the model's block, {checkpoint.config.block_length}")
        settings = replace(self, dtypes=dtypes, max_length=longest)
        settings.recipe().check_builders()
        return settings

    def _check_numbers(self) -> None:
        for name, most in LARGEST.items():
            value = self.flags.workspace if name == "workspace" else getattr(self, name)
            if value is None and name in ("max_length", "workspace"):
                continue
            if not is_integer(value) or not 1 <= value <= most:
                raise ExportError(f"{name} {value!r} must be 1 or more, and at most {most}")

    def _check_weights(self, checkpoint: Checkpoint) -> None:
        for form in (form for form in self.weights if form != FULL):
            Packing(form, self.group).check(checkpoint)
        if DYNAMIC in self.dtypes and FULL not in self.weights:
            raise ExportError("dtype w8a8 needs full weights: add --weights full, or leave --dtype w8a8 out")
