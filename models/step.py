"""`Step`: one denoising step of any family, as defined by the contract.

    step = Step(model)
    outputs = step(canvas, gather_indices, cache_indices, decode_rows, *caches)

The exporter traces it, and the eager engine runs it. It is pure: it has no state and updates nothing in place. The
vocabulary projection runs on the decoded rows only.
"""

import torch
from torch import nn

from dpad.models import llada, qwen
from dpad.plugins.attention import sparse_suffix_attention

_NEVER = -1e4  # exp of a logit so far below the best is 0


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
            cache_indices: int64 [B, K], pool slots that every query of the sequence may attend; -1 pads.
            decode_rows: int64 [B, R], rows of Q whose logits are wanted.
            caches: key and value pool of each layer in turn, each [P, G, D].

        Returns:
            token_ids int64 [B, R], odds_against float32 [B, R], logits float32 [B, R, V],
            then new key and value of each layer [B, Q, G, D].
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
        logits = self.model.logits(_rows_at(hidden, decode_rows))
        return (*predict(logits), logits, *new_rows)


def _rows_at(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of `hidden` [B, Q, width] at `rows` [B, R] -> [B, R, width]; -1 reads row 0."""
    return hidden.gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1]))


def predict(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The greedy choice for each row: logits [B, R, V] -> token_ids int64 [B, R], odds_against float32 [B, R]."""
    token_ids = logits.argmax(dim=-1)
    return token_ids, odds_against(logits, token_ids)


def odds_against(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Odds against `token_ids` [...], the likeliest tokens of `logits` [..., V].

    They are the sum of exp(logit - best) over all other tokens, so the token's probability is 1 / (1 + odds_against).
    Unlike that probability, they do not lose precision near 1.
    """
    chosen = token_ids[..., None]
    shifted = logits - logits.gather(-1, chosen)
    # exp is 0 at the chosen token, but NaN if its logit is infinite or NaN, which must not be hidden
    others = shifted.scatter(-1, chosen, shifted.gather(-1, chosen) + _NEVER)
    return others.exp().sum(dim=-1)
