"""`StepContract`: the frozen description of one traced denoising step.

    contract = StepContract.from_json(manifest["contract"])
    contract.inputs()   # names, dtypes and axes of every input tensor

Slots are absolute positions: a token's index on the canvas is its RoPE position and its
row in the key/value cache, and nothing is renumbered when DPad drops tokens. One pure
graph therefore serves every mode; the modes are data. Symbols of the axes:

    B batch · N canvas length · Q query rows this step · K attended cache rows
    R decoded rows · T cache slots · G key/value heads · D head size · V vocabulary
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from dpad.runtime.errors import ManifestError

_INT32 = 2**31 - 1
_LEAST = {"mask_token_id": 0, "eos_token_id": 0, "logit_shift": 0, "window": 0}  # of the others: 1
_MOST = {"layers": 4096, "logit_shift": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the step: its name, numpy dtype name and axes (symbol or fixed size)."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class StepContract:
    """What a compiled step takes and gives, and how far its dynamic axes may go.

    `logit_shift` is 0 where row p predicts position p (LLaDA, SDAR) and 1 where row p-1 predicts
    position p (Dream, Fast-dLLM v2). `block_length` and `window` are the values that compiled engines are
    tuned for, not limits. `max_batch` and `max_length` (canvas tokens) are limits.

    `block_causal`: attention is causal between blocks and full inside one (SDAR, Fast-dLLM v2). Blocks are then
    counted from position 0, the prompt's included, and `block_length` is the model's own. Manifests of other
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
    block_causal: bool = False

    @property
    def tempers_confidence(self) -> bool:
        """Whether a drawn token's confidence is its probability in the distribution that it was drawn from.

        It is in the authors' code of every family but LLaDA, where it is that in the model's own.
        """
        return self.family != "llada"

    def cache_names(self) -> list[tuple[str, str]]:
        """(key, value) input names a layer."""
        return [(f"key_cache.{i}", f"value_cache.{i}") for i in range(self.layers)]

    def new_names(self) -> list[tuple[str, str]]:
        """(key, value) output names a layer: the rows to write back to the cache."""
        return [(f"new_key.{i}", f"new_value.{i}") for i in range(self.layers)]

    def inputs(self, dtype: str = "float32") -> list[TensorSpec]:
        """Input tensors in graph order; `dtype` is that of the caches."""
        cache = ("B", "T", self.kv_heads, self.head_size)
        return [
            TensorSpec("canvas", "int64", ("B", "N")),
            TensorSpec("gather_indices", "int64", ("B", "Q")),
            TensorSpec("cache_indices", "int64", ("B", "K")),
            TensorSpec("decode_rows", "int64", ("B", "R")),
            *(TensorSpec(n, dtype, cache) for pair in self.cache_names() for n in pair),
        ]

    def outputs(self, dtype: str = "float32") -> list[TensorSpec]:
        """Output tensors in graph order; `dtype` is that of the new cache rows.

        `confidence` is the softmax probability of `token_ids`; `odds_against` is
        (1 - p) / p of the same token, which keeps the order of near-certain tokens that
        float32 would round to p = 1 (the authors compare in float64).
        """
        rows = ("B", "Q", self.kv_heads, self.head_size)
        return [
            TensorSpec("token_ids", "int64", ("B", "R")),
            TensorSpec("confidence", "float32", ("B", "R")),
            TensorSpec("odds_against", "float32", ("B", "R")),
            TensorSpec("logits", "float32", ("B", "R", self.vocab_size)),
            *(TensorSpec(n, dtype, rows) for pair in self.new_names() for n in pair),
        ]

    def axis_ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of each dynamic axis. K and T may be 0 in ONNX."""
        length = (1, self.max_length)
        return {
            "B": (1, self.max_batch),
            "N": length,
            "Q": length,
            "K": (0, self.max_length),
            "R": length,
            "T": (0, self.max_length),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, in field order."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The contract of a manifest; raises `ManifestError` on missing, unknown or mistyped keys."""
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
        if contract.mask_token_id == contract.eos_token_id or contract.heads % contract.kv_heads:
            what = (
                "heads do not divide among kv_heads" if contract.heads % contract.kv_heads else "mask and EOS are one"
            )
            raise ManifestError(f"contract: {what}; export the bundle again")
        return contract
