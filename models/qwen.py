"""Qwen's transformer without its causal mask: Qwen2 (Dream, Fast-dLLM v2) and Qwen3 (SDAR).

    config = Config.read(json.load(open("config.json")), logit_shift=1, qkv_bias=True)
    model = Model(config)                       # parameter names are the authors' (Qwen's)
    hidden = model(ids, positions, attend)      # [B, Q, width]
    logits = model.logits(hidden)               # [B, Q, vocabulary]

Each family has a file of its own with its differences. As in `llada`, the caller passes the attention,
`attend(layer, query, key, value)` -> [B, Q, H, D], and a layer is cut there into `before` and `after`.
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
_ONLY = {"hidden_act": "silu", "use_sliding_window": False}


@dataclass(frozen=True)
class Config:
    """The keys of config.json that shape the computation, under common names, and the family's own fields.

    Attributes:
        logit_shift: 1 if row p-1 predicts position p, as in autoregressive models, else 0.
        qkv_bias: whether q, k and v have biases (Qwen2).
        qk_norm: whether every head's query and key are normalized before the rotation (Qwen3).
        block_length: length in tokens of the blocks between which attention is causal; 0: it sees the whole canvas.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    vocab_size: int
    rope_theta: float
    norm_eps: float
    tied: bool
    mask_token_id: int
    eos_token_id: int
    max_length: int
    logit_shift: int
    qkv_bias: bool = False
    qk_norm: bool = False
    block_length: int = 0
    tempers_confidence: ClassVar[bool] = True  # confidence of a drawn token: its tempered and filtered probability

    @classmethod
    def read(cls, data: Mapping[str, Any], **family: Any) -> Self:
        """Read Qwen's keys; `family` are the fields that are not in config.json.

        Raises `CheckpointError` naming a key that is missing or unsupported.
        """
        require(data, _ONLY)
        width, heads = integer(data, "hidden_size"), integer(data, "num_attention_heads")
        has_head_size = data.get("head_dim") is not None
        if not has_head_size and width % heads:
            raise CheckpointError(f"config.json: hidden_size {width} does not divide into {heads} heads")
        return cls(
            layers=integer(data, "num_hidden_layers", high=MAX_LAYERS),
            width=width,
            heads=heads,
            kv_heads=integer(data, "num_key_value_heads", "num_attention_heads"),
            head_size=integer(data, "head_dim") if has_head_size else width // heads,
            mlp_width=integer(data, "intermediate_size"),
            vocab_size=integer(data, "vocab_size"),
            rope_theta=rope_base(data),
            norm_eps=number(data, "rms_norm_eps"),
            tied=flag(data, "tie_word_embeddings"),
            mask_token_id=integer(data, "mask_token_id", low=0),
            eos_token_id=token(data, "eos_token_id"),
            max_length=integer(data, "max_position_embeddings"),
            **family,
        )


class Attention(nn.Module):
    """The part of grouped-query attention before the attention itself: projections, norms and rotation."""

    def __init__(self, config: Config, rotate: rope.Rotate) -> None:
        super().__init__()
        self.head_size, self.rotate = config.head_size, rotate
        q_width, kv_width = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.width, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, config.width, bias=False)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(config.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.qkv: Products = Together(self.q_proj, self.k_proj, self.v_proj)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., width] -> query [..., H, D] and key [..., G, D], both rotated, and value [..., G, D]."""
        query, key, value = (torch.unflatten(rows, -1, (-1, self.head_size)) for rows in self.qkv(x))
        return self.rotate(self.q_norm(query), cos, sin), self.rotate(self.k_norm(key), cos, sin), value


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)
        self.gate_up: Products = Together(self.gate_proj, self.up_proj)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> [..., width]."""
        gate, up = self.gate_up(x)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """One pre-norm layer: attention, then the MLP."""

    def __init__(self, config: Config, rotate: rope.Rotate) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config, rotate)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., width] -> rotated query [..., H, D] and key [..., G, D], and value [..., G, D]."""
        rows: tuple[Tensor, Tensor, Tensor] = self.self_attn(self.input_layernorm(x), cos, sin)
        return rows

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [..., width] and the result of attention [..., H, D] -> [..., width]."""
        x = x + self.self_attn.o_proj(attended.flatten(-2))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Backbone(nn.Module):
    """Everything under the `model.` prefix of the checkpoint."""

    def __init__(self, config: Config, rotate: rope.Rotate) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config, rotate) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)


class Model(nn.Module):
    """The mask predictor. Its state dict has exactly the names of the authors' safetensors."""

    head, embedding = "lm_head.weight", "model.embed_tokens.weight"  # tied models have only the embedding
    rows_key = "vocab_size"  # config.json's key for their number of rows

    def __init__(self, config: Config, rotate: rope.Rotate = rope.rotate) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config, rotate)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def blocks(self) -> list[Layer]:
        """The layers in order."""
        return [*cast("list[Layer]", self.model.layers)]

    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> rows [..., width]."""
        rows: Tensor = self.model.embed_tokens(ids)
        return rows

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin at `positions` int64 [...], which all layers share: float32 [..., 1, D/2]."""
        return rope.rotation(positions, self.config.head_size, self.config.rope_theta)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids, positions int64 [B, Q] -> hidden states before the final norm [B, Q, width]."""
        x = self.embed(ids)
        cos, sin = self.rotation(positions)
        for index, layer in enumerate(self.blocks):
            x = layer.after(x, attend(index, *layer.before(x, cos, sin)))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden rows [..., width] -> float32 logits [..., vocabulary]."""
        head = self.model.embed_tokens if self.config.tied else self.lm_head
        return F.linear(self.model.norm(hidden), head.weight).float()
