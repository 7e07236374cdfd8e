"""`Step`: one denoising step of any family, as the contract describes it.

    step = Step(model)
    outputs = step(canvas, gather_indices, cache_indices, decode_rows, *caches)

This is what the exporter traces and what the eager engine runs. It is pure: no state and
no in-place update. The vocabulary projection runs on the decoded rows only.
"""

import torch
from torch import nn

from dpad.models import llada, qwen
from dpad.plugins.attention import gather_rows, sparse_suffix_attention


class Step(nn.Module):
    """One step over the rows that DPad retained (arXiv 2508.14148)."""

    def __init__(self, model: llada.Model | qwen.Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        canvas: torch.Tensor,
        gather_indices: torch.Tensor,
        cache_indices: torch.Tensor,
        decode_rows: torch.Tensor,
        caches: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Run one step.

        Args:
            canvas: int64 [B, N], prompt, decided tokens and masks.
            gather_indices: int64 [B, Q], canvas positions that take part; -1 pads.
            cache_indices: int64 [B, K], cache slots every query may attend; -1 pads.
            decode_rows: int64 [B, R], rows of Q whose logits are wanted.
            caches: key and value cache of each layer in turn, each [B, T, G, D].

        Returns:
            token_ids int64 [B, R], confidence, odds_against float32 [B, R],
            logits float32 [B, R, V], then new key and value of each layer [B, Q, G, D].
        """
        positions = gather_indices.clamp(min=0)
        ids = canvas.gather(1, positions)
        scale, block = self.model.config.head_size**-0.5, self.model.config.block_length
        new_rows: list[torch.Tensor] = []

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            new_rows.extend((key, value))
            key_cache, value_cache = caches[2 * layer : 2 * layer + 2]
            out: torch.Tensor = sparse_suffix_attention(
                query, key, value, key_cache, value_cache, cache_indices, gather_indices, scale, block
            )
            return out

        hidden = self.model(ids, positions, attend)
        logits = self.model.logits(gather_rows(hidden, decode_rows))
        return (*predict(logits), logits, *new_rows)


def predict(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Greedy choice a row: logits [B, R, V] -> token_ids, confidence, odds_against [B, R].

    The odds against the chosen token are the sum of exp(logit - max) over all others, so
    confidence = 1 / (1 + odds_against) and nothing is lost where confidence rounds to 1.
    """
    token_ids = logits.argmax(dim=-1)
    best = logits.amax(dim=-1, keepdim=True)
    others = torch.arange(logits.shape[-1], device=logits.device) != token_ids[..., None]
    shifted = logits - best  # 0 at the chosen token, but NaN if its logit is infinite: that must show
    odds_against = torch.where(others, shifted.exp(), shifted).sum(dim=-1)
    return token_ids, 1.0 / (1.0 + odds_against), odds_against
