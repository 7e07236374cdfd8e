"""LLaDA (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5; arXiv 2502.09992).

    config = Config.from_json(json.load(open("config.json")))
    model = Model(config)                       # parameter names are the authors'
    hidden = model(ids, positions, attend)      # [B, Q, width]
    logits = model.logits(hidden)               # [B, Q, vocabulary]

It is a LLaMA-style transformer without causal mask: row p predicts position p. The module has no cache and no attention
mask: the caller's `attend(layer, query, key, value)` gets the rotated rows and returns [B, Q, H, D], so that tracing,
training and serving share one definition. A layer is cut at its attention into `before` and `after`, because a compiled
engine joins the end of one layer and the beginning of the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpad.models import rope
from dpad.models.fields import MAX_LAYERS, flag, integer, number, require, rope_base, token
from dpad.models.linear import Products, Together
from dpad.plugins.attention import Attend
from dpad.runtime.errors import CheckpointError

# config.json keys that change the computation, with the only value that the published models use.
_ONLY = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "multi_query_attention": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "layer_norm_with_affine": True,
    "clip_qkv": None,
}


@dataclass(frozen=True)
class Config:
    """The keys of LLaDA's config.json that shape the computation, under common names."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab_size: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool
    tied: bool
    mask_token_id: int
    eos_token_id: int
    max_length: int
    logit_shift: int = 0
    block_length: int = 0  # not block-causal: attention sees the whole canvas
    tempers_confidence: ClassVar[bool] = False  # confidence of a drawn token: its untempered probability

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the authors' keys; raises `CheckpointError` naming a key that is missing or unsupported."""
        require(data, _ONLY)
        width, heads = integer(data, "d_model"), integer(data, "n_heads")
        if width % heads:
            raise CheckpointError(f"config.json: d_model {width} does not divide into {heads} heads")
        has_mlp_width = data.get("mlp_hidden_size") is not None
        return cls(
            layers=integer(data, "n_layers", high=MAX_LAYERS),
            width=width,
            heads=heads,
            kv_heads=integer(data, "n_kv_heads", "n_heads"),
            mlp_width=integer(data, "mlp_hidden_size") if has_mlp_width else integer(data, "mlp_ratio") * width,
            vocab_size=integer(data, "embedding_size", "vocab_size"),
            rope_theta=rope_base(data),
            norm_eps=number(data, "rms_norm_eps"),
            qkv_bias=flag(data, "include_qkv_bias"),
            tied=flag(data, "weight_tying"),
            mask_token_id=integer(data, "mask_token_id", low=0),
            eos_token_id=token(data, "eos_token_id"),
            max_length=integer(data, "max_sequence_length"),
        )


class Block(nn.Module):
    """One pre-norm layer: attention, then a gated MLP."""

    def __init__(self, config: Config, rotate: rope.Rotate) -> None:
        super().__init__()
        self.head_size, self.rotate = config.head_size, rotate
        kv_width = config.kv_heads * config.head_size
        self.attn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.q_proj = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.attn_out = nn.Linear(config.width, config.width, bias=False)
        self.ff_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ff_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.ff_out = nn.Linear(config.mlp_width, config.width, bias=False)
        self.qkv: Products = Together(self.q_proj, self.k_proj, self.v_proj)
        self.gate_up: Products = Together(self.ff_proj, self.up_proj)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., width] -> rotated query [..., H, D] and key [..., G, D], and value [..., G, D]."""
        query, key, value = (torch.unflatten(rows, -1, (-1, self.head_size)) for rows in self.qkv(self.attn_norm(x)))
        return self.rotate(query, cos, sin), self.rotate(key, cos, sin), value

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [..., width] and the result of attention [..., H, D] -> [..., width]."""
        x = x + self.attn_out(attended.flatten(-2))
        gate, up = self.gate_up(self.ff_norm(x))
        out: Tensor = x + self.ff_out(F.silu(gate) * up)
        return out


class Model(nn.Module):
    """The mask predictor. Its state dict has exactly the names of the authors' safetensors."""

    # tied models have only the embedding
    head, embedding = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
    rows_key = "embedding_size"  # config.json's key for their number of rows

    def __init__(self, config: Config, rotate: rope.Rotate = rope.rotate) -> None:
        super().__init__()
        self.config = config
        parts: dict[str, nn.Module] = {
            "wte": nn.Embedding(config.vocab_size, config.width),
            "blocks": nn.ModuleList(Block(config, rotate) for _ in range(config.layers)),
            "ln_f": nn.RMSNorm(config.width, eps=config.norm_eps),
        }
        if not config.tied:
            parts["ff_out"] = nn.Linear(config.width, config.vocab_size, bias=False)
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(parts)})

    @property
    def _parts(self) -> nn.ModuleDict:
        parts = self.model["transformer"]
        assert isinstance(parts, nn.ModuleDict)
        return parts

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [*cast("list[Block]", self._parts["blocks"])]

    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> rows [..., width]."""
        rows: Tensor = self._parts["wte"](ids)
        return rows

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at `positions` int64 [...], which all layers share: float32 [..., 1, D/2]."""
        return rope.rotation(positions, self.config.head_size, self.config.rope_theta)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids, positions int64 [B, Q] -> hidden states before the final norm [B, Q, width]."""
        x = self.embed(ids)
        cos, sin = self.rotation(positions)
        for layer, block in enumerate(self.blocks):
            x = block.after(x, attend(layer, *block.before(x, cos, sin)))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., width] -> float32 logits [..., vocabulary]."""
        normed = self._parts["ln_f"](hidden)
        head = self._parts["wte" if self.config.tied else "ff_out"].weight
        assert isinstance(head, Tensor)
        return F.linear(normed, head).float()
