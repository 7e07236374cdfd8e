"""LLaDA and Dream compute what transformers' LLaMA and Qwen2 compute without a causal mask.

Those two are independent of this package and need no download. Positions leave gaps, as
they do when DPad drops tokens; a table of angles indexed by rank would not survive that.
"""

from typing import Any

import pytest
import torch
from checkpoints import Weights, head_name, random_weights, raw_config
from reference import full_attention
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from dpad.models.checkpoint import Model, meta_model, parse_config

# LLaDA's names -> LLaMA's; Dream's are Qwen2's but for the prefix.
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

CASES = {
    "llada": ("llada", {}),
    "llada grouped heads": ("llada", {"heads": 4, "kv_heads": 2, "width": 128}),
    "llada qkv bias": ("llada", {"include_qkv_bias": True, "kv_heads": 1}),
    "llada tied": ("llada", {"tied": True}),
    "llada other base": ("llada", {"rope_theta": 10000.0, "rms_norm_eps": 1e-3}),
    "dream": ("dream", {}),
    "dream grouped heads": ("dream", {"heads": 6, "kv_heads": 2, "width": 192}),
    "dream tied": ("dream", {"tied": True}),
    "dream wide heads": ("dream", {"head_dim": 64, "rope_theta": 10000.0, "rms_norm_eps": 1e-3}),
}


def our_model(raw: dict[str, Any], weights: Weights) -> Model:
    """The package's module holding `weights`, whose names it must have."""
    model = meta_model(*parse_config(raw))
    model.load_state_dict(weights, assign=True)
    return model


def peer_hidden(
    raw: dict[str, Any], weights: Weights, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Normed hidden states [B, Q, width] of transformers' model with the same weights."""
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
        keys = [key for key in raw if key not in ("architectures", "model_type", "rope_theta")]
        config = Qwen2Config(**{key: raw[key] for key in keys}, attn_implementation="eager")
        config.rope_parameters = {"rope_type": "default", "rope_theta": raw["rope_theta"]}
        model = Qwen2Model(config)
        renamed = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    wanted = model.state_dict().keys()
    if "d_model" in raw and raw["include_qkv_bias"]:  # LLaMA then has an output bias too, LLaDA has none
        outputs = [name for name in wanted if name.endswith("o_proj.bias")]
        renamed |= {name: torch.zeros(raw["d_model"]) for name in outputs}
    model.load_state_dict({name: renamed[name] for name in wanted})
    with torch.no_grad():
        hidden = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    return hidden.last_hidden_state


def llama_name(name: str) -> str:
    """LLaMA's name of a LLaDA tensor."""
    name = name.removeprefix("model.transformer.")
    for ours, theirs in LLADA_TO_LLAMA.items():
        if f".{name}".find(f".{ours}") >= 0:
            name = f".{name}".replace(f".{ours}", f".{theirs}").removeprefix(".")
    return name


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_peers(case: str) -> None:
    """Fails if rotation, grouping, norm, biases, tying, gating or a weight name is wrong."""
    family, changes = CASES[case]
    raw = raw_config(family, **changes)
    weights = random_weights(raw, seed=11, sharpness=1.5)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 128, (3, 17), generator=generator)
    positions = torch.stack([torch.randperm(400, generator=generator)[:17].sort().values for _ in range(3)])
    assert (positions[:, 1:] - positions[:, :-1]).max() > 1

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.stack([full_attention(*row) for row in zip(query, key, value)])

    model = our_model(raw, weights)
    with torch.no_grad():
        ours = model.logits(model(ids, positions, attend))
    hidden = peer_hidden(raw, weights, ids, positions, torch.zeros(3, 1, 17, 17))
    theirs = hidden @ weights[head_name(raw)].T
    assert 1.0 < theirs.std() < 4.0
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_attention_is_not_causal_and_positions_matter(family: str) -> None:
    """Fails if a row cannot see what follows it, or if the position ids are ignored."""
    raw = raw_config(family)
    model = our_model(raw, random_weights(raw, seed=2))
    ids, positions = torch.arange(9)[None], torch.arange(9)[None] * 3

    def logits(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return full_attention(query[0], key[0], value[0])[None]

        with torch.no_grad():
            return model.logits(model(ids, positions, attend))[0, 0]

    changed_last, moved_last = ids.clone(), positions.clone()
    changed_last[0, -1] = 77
    moved_last[0, -1] = 100
    before = logits(ids, positions)
    assert (before - logits(changed_last, positions)).abs().max() > 1e-2
    assert (before - logits(ids, moved_last)).abs().max() > 1e-3
    assert (before - logits(ids, positions + 50)).abs().max() < 1e-3, "rotation is relative"
