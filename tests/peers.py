"""Peers of the families: transformers' own models, which depend neither on this package nor on a download.

    model = peer_model(raw, weights)
    hidden = peer_hidden(raw, weights, ids, positions, mask)      # [B, Q, width]

LLaDA's peer is LLaMA, that of Dream and Fast-dLLM v2 is Qwen2, and SDAR's is Qwen3, with the same weights renamed.
"""

from typing import Any

import torch
from checkpoints import Weights
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

# LLaDA's names -> LLaMA's. Dream's names are Qwen2's except for the prefix.
LLADA_TO_LLAMA = {
    "wte.": "embed_tokens.",
    "ln_f.": "norm.",
    "blocks.": "layers.",
    "attn_norm.": "input_layernorm.",
    "ff_norm.": "post_attention_layernorm.",
    "q_proj.": "self_attn.q_proj.",
    "k_proj.": "self_attn.k_proj.",
    "v_proj.": "self_attn.v_proj.",
    "attn_out.": "self_attn.o_proj.",
    "ff_proj.": "mlp.gate_proj.",
    "up_proj.": "mlp.up_proj.",
    "ff_out.": "mlp.down_proj.",
}

_OWN = ("architectures", "model_type", "rope_theta", "block_size", "bd_size")  # keys that Qwen's config does not know


def peer_model(raw: dict[str, Any], weights: Weights) -> Any:
    """transformers' model with `weights`; it adds the given attention mask to the scores."""
    if "d_model" in raw:
        model: Any = LlamaModel(
            LlamaConfig(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["d_model"],
                intermediate_size=raw["mlp_hidden_size"],
                num_hidden_layers=raw["n_layers"],
                num_attention_heads=raw["n_heads"],
                num_key_value_heads=raw["n_kv_heads"],
                rms_norm_eps=raw["rms_norm_eps"],
                rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
                attention_bias=raw["include_qkv_bias"],
                attn_implementation="eager",
            )
        )
        renamed = {llama_name(name): tensor for name, tensor in weights.items()}
    else:
        kinds = (Qwen3Config, Qwen3Model) if raw["model_type"] == "sdar" else (Qwen2Config, Qwen2Model)
        config = kinds[0](**{key: raw[key] for key in raw if key not in _OWN}, attn_implementation="eager")
        config.rope_parameters = {"rope_type": "default", "rope_theta": raw["rope_theta"]}
        model = kinds[1](config)
        renamed = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    wanted = model.state_dict().keys()
    if "d_model" in raw and raw["include_qkv_bias"]:  # LLaMA then has an output bias too, LLaDA has none
        outputs = [name for name in wanted if name.endswith("o_proj.bias")]
        renamed |= {name: torch.zeros(raw["d_model"]) for name in outputs}
    model.load_state_dict({name: renamed[name] for name in wanted})
    return model


def peer_hidden(
    raw: dict[str, Any], weights: Weights, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Normed hidden states [B, Q, width] of the peer; `mask` [B, 1, Q, Q] is added to the scores."""
    with torch.no_grad():
        hidden = peer_model(raw, weights)(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    return hidden.last_hidden_state


def llama_name(name: str) -> str:
    """LLaMA's name for a LLaDA tensor."""
    name = name.removeprefix("model.transformer.")
    for ours, theirs in LLADA_TO_LLAMA.items():
        if f".{name}".find(f".{ours}") >= 0:
            name = f".{name}".replace(f".{ours}", f".{theirs}").removeprefix(".")
    return name
