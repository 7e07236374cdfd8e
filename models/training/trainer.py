"""The training loop: model, optimizers, clock, and the file from which an interrupted run continues."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel

from dpad.models import dream, llada
from dpad.models.training.batches import Batch, Data
from dpad.models.training.numbers import shared_directions, waves
from dpad.models.training.recipe import Recipe
from dpad.models.training.views import WIDTHS
from dpad.runtime.errors import CheckpointError

Model = llada.Model | dream.Model
Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]

HEADS = ("transformer.ff_out.weight", "lm_head.weight")


def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Full attention of rows [B, R, H, D] over themselves; key and value may have fewer heads."""
    rows = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return F.scaled_dot_product_attention(*rows, enable_gqa=query.shape[2] != key.shape[2]).transpose(1, 2)


def attend_causally(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention: each row attends itself and the rows before it; shapes as in `attend`."""
    rows = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    grouped = query.shape[2] != key.shape[2]
    return F.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=grouped).transpose(1, 2)


def attend_in_streams(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention for the first half of the rows; the second half are masks, one per position.

    A mask attends itself and the rows of the first half before its position: block diffusion
    (arXiv 2503.09573) in blocks of one token, all of them in one pass.
    """
    rows = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    half = query.shape[1] // 2
    before = torch.ones(half, half, dtype=torch.bool, device=query.device).tril()
    shown = (
        torch.cat([before, before.tril(-1)]),
        torch.cat([torch.zeros_like(before), torch.eye(half, dtype=torch.bool, device=before.device)]),
    )
    return F.scaled_dot_product_attention(
        *rows, attn_mask=torch.cat(shown, dim=1), enable_gqa=query.shape[2] != key.shape[2]
    ).transpose(1, 2)


def initialise(model: Model, seed: int, numbers: Mapping[int, int]) -> None:
    """Initialise weights by fan-in, residual outputs smaller, embeddings larger, so that they stay distinct; biases 0.

    The rows of `numbers` (token -> value) in the embedding and the head start as waves of the value. Sums and
    successors are rotations of waves, which are easier to learn than a table.
    """
    state = torch.Generator().manual_seed(seed)
    residual = ("attn_out.weight", "blocks.ff_out.weight", "o_proj.weight", "down_proj.weight")
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 1.0 if "wte" in name or "embed_tokens" in name else weight.shape[1] ** -0.5
            small = name.endswith(residual) or (".blocks." in name and name.endswith("ff_out.weight"))
            torch.nn.init.normal_(
                weight, std=std * ((2 * model.config.layers) ** -0.5 if small else 1), generator=state
            )
        elif name.endswith("bias"):
            torch.nn.init.zeros_(weight)
    tokens, own = torch.tensor(list(numbers)), 0.3  # share of each row that is independent of the waves
    turned = waves(list(numbers.values()), model.config.width, state)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("wte.weight", "embed_tokens.weight", *HEADS)):
                std = 1.0 if "wte" in name or "embed_tokens" in name else weight.shape[1] ** -0.5
                weight[tokens] = (1 - own**2) ** 0.5 * std * turned + own * weight[tokens]


def shifted(model: Model) -> bool:
    """Whether row p - 1 predicts position p, as in Dream."""
    return isinstance(model, dream.Model)


def loss_of(model: Model, batch: Batch, causal: bool = False) -> torch.Tensor:
    """The weighted cross entropy of a batch, a scalar; logits are computed only for rows with a weight."""
    if causal and not shifted(model):
        batch = _streams(batch, model.config.mask_token_id)
    attention = attend if not causal else attend_causally if shifted(model) else attend_in_streams
    device = next(model.parameters()).device
    weight, targets = batch.weight.flatten(), batch.targets.flatten()
    if shifted(model):  # the row before must be the position before
        follows = F.pad(batch.positions.diff(dim=1) == 1, (1, 0)).flatten()
        weight = weight * follows
    chosen = weight.nonzero()[:, 0]
    chosen = F.pad(chosen, (0, -len(chosen) % 256), value=1)
    counted = torch.arange(len(chosen)) < weight.count_nonzero()
    weight, targets = weight[chosen] * counted, targets[chosen]
    rows = chosen - 1 if shifted(model) else chosen
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(batch.ids.to(device), batch.positions.to(device), attention)
        logits = model.logits(hidden.flatten(0, 1)[rows.to(device)])
    return (F.cross_entropy(logits, targets.to(device), reduction="none") * weight.to(device)).sum()


def _streams(batch: Batch, mask: int) -> Batch:
    """A batch with every row twice: as it is, and as a mask; only the masks are targets."""
    twice = torch.cat([batch.positions, batch.positions], dim=1), torch.cat([batch.targets, batch.targets], dim=1)
    ids = torch.cat([batch.ids, torch.full_like(batch.ids, mask)], dim=1)
    return Batch(ids, *twice, torch.cat([torch.zeros_like(batch.weight), batch.weight], dim=1))


class Trainer:
    """Model, optimizers, clock, and `average`, the moving average of the weights, which is the result of a run.

    Muon updates the layers' matrices, and AdamW everything else. After every step the head's rows of numbers are
    projected on `numbers.shared_directions`.
    """

    CLOCK = ("step", "rows", "seconds", "loss")

    def __init__(self, model: Model, data: Data, threads: int = 1, compiled: bool = False) -> None:
        self.model, self.data, self.recipe, self.threads = model, data, data.recipe, threads
        self._head = next(weight for name, weight in model.named_parameters() if name.endswith(HEADS))
        self._numbers = torch.tensor(list(data.text.values), device=self._head.device)
        self._shared = shared_directions(list(data.text.values.values())).to(self._head.device)
        self._share(self._head)
        self.average = AveragedModel(model, multi_avg_fn=self._approach)
        if compiled:
            torch._dynamo.config.recompile_limit = 4 * len(WIDTHS)  # else wide samples, which come late, run eagerly
            model.compile(dynamic=False)
        inside = {n: w for n, w in model.named_parameters() if w.ndim == 2 and (".blocks." in n or ".layers." in n)}
        rest = [w for n, w in model.named_parameters() if n not in inside]
        self.optimizers: list[Optimizer] = [
            Muon(list(inside.values()), weight_decay=self.recipe.decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
        ]
        self.step, self.rows, self.seconds, self.loss = 0, 0, 0.0, 0.0

    def update(self, progress: float) -> None:
        """Run one training step at `progress` in [0, 1) of the run."""
        begun, recipe = time.monotonic(), self.recipe
        causal = recipe.is_causal(self.step, progress)
        batch = self.data.batch(recipe.phase(progress), causal)
        share = min(1.0, (progress + 1e-3) / recipe.warmup, (1 - progress) / recipe.cooldown)
        loss = loss_of(self.model, batch, causal)
        if not loss.isfinite():  # before it reaches the weights
            raise CheckpointError(f"the loss of step {self.step} is {float(loss.detach())}; resume with a lower rate")
        torch.autograd.backward(loss)
        if self._head.grad is not None:
            self._share(self._head.grad)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        torch.set_num_threads(1)  # with several threads the optimizers' small matrices take twice the time
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * share
            optimizer.step()
            optimizer.zero_grad()
        self._share(self._head)
        self.average.update_parameters(self.model)
        torch.set_num_threads(self.threads)
        self.loss += (float(loss.detach()) - self.loss) * (0.02 if self.step else 1.0)
        self.step, self.rows = self.step + 1, self.rows + batch.ids.numel()
        self.seconds += time.monotonic() - begun

    @torch.no_grad()
    def _share(self, table: torch.Tensor) -> None:
        """Project the rows of numbers in the head, or in its gradient, on the directions that numbers share."""
        table[self._numbers] = self._shared @ (self._shared.T @ table[self._numbers])

    def _approach(self, mean: Tensors, weights: Tensors, steps: torch.Tensor | int) -> None:
        """Move the average towards the weights after `steps` steps; it moves faster at the beginning."""
        decay = min(self.recipe.average, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(mean, weights, 1 - decay)

    def save(self, path: Path) -> None:
        """Write everything that is needed to continue to `path`, atomically."""
        state: dict[str, Any] = {"model": self.model.state_dict(), "data": (self.data.pool, self.data.place)}
        state["average"] = self.average.state_dict()
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        state |= {name: getattr(self, name) for name in self.CLOCK} | {"recipe": asdict(self.recipe)}
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        """Continue from `path`; the place in the data determines the masks, so no random state is needed."""
        if not path.exists():
            raise CheckpointError(f"{path} does not exist, so there is nothing to resume; start without --resume")
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.data.pool, self.data.place = state["data"]
        for name in self.CLOCK:
            setattr(self, name, state[name])
        self.recipe = self.data.recipe = Recipe(**state["recipe"])
