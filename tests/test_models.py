"""Compares the families with transformers' LLaMA, Qwen2 and Qwen3 without a causal mask.

These models are independent of this package and need no download. Positions have gaps, as when DPad drops tokens, so
that rotation by rank instead of position is noticed.
"""

from typing import Any

import pytest
import torch
from checkpoints import Weights, head_name, random_weights, raw_config
from peers import peer_hidden
from reference import full_attention

from dpad.models.checkpoint.checkpoint import Model, meta_model, parse_config

CASES = {
    "llada": ("llada", {}),
    "llada grouped heads": ("llada", {"heads": 4, "kv_heads": 2, "width": 128}),
    "llada qkv bias": ("llada", {"include_qkv_bias": True, "kv_heads": 1}),
    "llada tied": ("llada", {"tied": True}),
    "llada other base": ("llada", {"rope_theta": 10000.0, "rms_norm_eps": 1e-3}),
    "dream": ("dream", {}),
    "dream grouped heads": ("dream", {"heads": 6, "kv_heads": 2, "width": 192}),
    "dream tied": ("dream", {"tied": True}),
    "sdar": ("sdar", {}),
    "sdar grouped heads": ("sdar", {"heads": 6, "kv_heads": 2, "width": 192, "head_dim": 64, "rms_norm_eps": 1e-3}),
    "sdar tied": ("sdar", {"tied": True}),
    "fast-dllm v2": ("fast_dllm", {"heads": 6, "kv_heads": 2, "width": 192}),
    "fast-dllm v2 tied": ("fast_dllm", {"tied": True}),
    "dream wide heads": ("dream", {"head_dim": 64, "rope_theta": 10000.0, "rms_norm_eps": 1e-3}),
}


def our_model(raw: dict[str, Any], weights: Weights) -> Model:
    """The package's module with `weights`, which must have the same names."""
    model = meta_model(*parse_config(raw))
    model.load_state_dict(weights, assign=True)
    return model


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
    """Fails if a row does not attend later rows, or position ids are ignored."""
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
