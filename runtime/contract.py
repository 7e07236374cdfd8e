"""`StepContract`: the frozen description of one traced denoising step.

    contract = StepContract.from_json(manifest["contract"])
    contract.inputs()   # names, dtypes and axes of every input tensor

A token's index on the canvas is its RoPE position, and no token is renumbered when DPad drops others. Keys and values
lie in a pool that all sequences share: a key tensor and a value tensor of P slots in each layer. A step's inputs name
the slots that each sequence attends. One pure graph therefore serves every mode; the modes are data. Axis symbols:

    B sequences · N canvas length · Q query rows this step · K attended slots · R decoded rows
    P pool slots · G key/value heads · D head size · V vocabulary

A second program, `decide`, computes from the logits, which stay on the device, what the step itself does not output:
tokens drawn from a tempered and filtered distribution, entropies and margins. Greedy decoding does not run it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.errors import ManifestError

_INT32 = 2**31 - 1
_LEAST = {"mask_token_id": 0, "eos_token_id": 0, "logit_shift": 0, "window": 0}  # the other fields must be 1 or more
_MOST = {"layers": 4096, "logit_shift": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the step: its name, numpy dtype name and axes (symbol or fixed size)."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class StepContract:
    """Inputs and outputs of a compiled step, and the limits of its dynamic axes.

    `logit_shift` is 0 where row p predicts position p (LLaDA, SDAR) and 1 where row p-1 predicts
    position p (Dream, Fast-dLLM v2). `block_length` and `window` are the values that compiled engines are
    tuned for, not limits. `max_batch` (sequences per step) and `max_length` (canvas tokens) are limits.
    `tempers_confidence`: a drawn token's confidence is its probability in the tempered and filtered distribution, as
    in the authors' code of every family but LLaDA; if False, it is its probability in the model's own distribution.

    `block_causal`: attention is causal between blocks and full inside one (SDAR, Fast-dLLM v2). Blocks are then
    counted from position 0, the start of the prompt, and `block_length` is the model's own. Manifests of other
    models may leave it out.
    """

    family: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    logit_shift: int
    max_batch: int
    max_length: int
    block_length: int
    window: int
    tempers_confidence: bool
    block_causal: bool = False

    @property
    def caches(self) -> tuple[str, ...]:
        """The cache policies that the model supports; see `runtime.cache`."""
        return (BLOCKS,) if self.block_causal else CACHES

    def cache_names(self) -> list[str]:
        """Input names of the pool: key and value of each layer in turn."""
        return [f"{kind}_cache.{i}" for i in range(self.layers) for kind in ("key", "value")]

    def new_names(self) -> list[str]:
        """Output names of the new key and value rows, in the order of `cache_names`."""
        return [f"new_{kind}.{i}" for i in range(self.layers) for kind in ("key", "value")]

    def inputs(self, dtype: str = "float32") -> list[TensorSpec]:
        """Input tensors in graph order; `dtype` is the dtype of the pool."""
        cache = ("P", self.kv_heads, self.head_size)
        return [
            TensorSpec("canvas", "int64", ("B", "N")),
            TensorSpec("gather_indices", "int64", ("B", "Q")),
            TensorSpec("cache_indices", "int64", ("B", "K")),
            TensorSpec("decode_rows", "int64", ("B", "R")),
            *(TensorSpec(n, dtype, cache) for n in self.cache_names()),
        ]

    def outputs(self, dtype: str = "float32") -> list[TensorSpec]:
        """Output tensors in graph order; `dtype` is the dtype of the new rows.

        `token_ids` are the likeliest tokens; ties go to the lower id. `odds_against` is (1 - p) / p of their softmax
        probability p: it keeps the order of near-certain tokens, whose p float32 would round to 1 (the authors
        compare in float64).
        """
        rows = ("B", "Q", self.kv_heads, self.head_size)
        return [
            TensorSpec("token_ids", "int64", ("B", "R")),
            TensorSpec("odds_against", "float32", ("B", "R")),
            TensorSpec("logits", "float32", ("B", "R", self.vocab_size)),
            *(TensorSpec(n, dtype, rows) for n in self.new_names()),
        ]

    def decide_inputs(self) -> list[TensorSpec]:
        """Inputs of the program `decide`, in graph order; see `engines.step.Sampling`."""
        return [
            TensorSpec("logits", "float32", ("B", "R", self.vocab_size)),
            TensorSpec("uniform", "float32", ("B", "R")),
            TensorSpec("temperature", "float32", ("B",)),
            TensorSpec("top_k", "int64", ("B",)),
            TensorSpec("top_p", "float32", ("B",)),
            TensorSpec("banned", "int64", ("B",)),
        ]

    def decide_outputs(self) -> list[TensorSpec]:
        """Outputs of the program `decide`, in graph order; see `engines.step.Decisions`."""
        floats = ("odds_against", "negative_entropy", "margin")
        return [TensorSpec("token_ids", "int64", ("B", "R")), *(TensorSpec(n, "float32", ("B", "R")) for n in floats)]

    def axis_ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of each dynamic axis. K may be 0 in ONNX; P is fixed when an engine opens."""
        others = {"B": (1, self.max_batch), "K": (0, self.max_length), "P": (1, _INT32)}
        return {**dict.fromkeys("NQR", (1, self.max_length)), **others}

    def to_json(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the contract of a manifest; raises `ManifestError` on missing, unknown or mistyped keys."""
        types = {f.name: f.type for f in fields(cls)}
        optional = {f.name for f in fields(cls) if f.default is not MISSING}
        wrong = (set(data) - set(types)) | (set(types) - set(data) - optional)
        if wrong:
            raise ManifestError(f"contract: missing or unknown keys {sorted(wrong)}; export the bundle again")
        for name, value in data.items():
            kind = types[name]
            if type(value) is not kind or (kind is int and value < 0):
                raise ManifestError(f"contract.{name}: {value!r} is not a valid {kind}; export the bundle again")
            if kind is int and not _LEAST.get(name, 1) <= value <= _MOST.get(name, _INT32):
                raise ManifestError(f"contract.{name}: {value} is out of range; export the bundle again")
        contract = cls(**data)
        if max(contract.mask_token_id, contract.eos_token_id) >= contract.vocab_size:
            raise ManifestError("contract: a token is outside the vocabulary; export the bundle again")
        if contract.heads % contract.kv_heads:
            raise ManifestError("contract: heads is not a multiple of kv_heads; export the bundle again")
        if contract.mask_token_id == contract.eos_token_id:
            raise ManifestError("contract: mask_token_id and eos_token_id are equal; export the bundle again")
        return contract
