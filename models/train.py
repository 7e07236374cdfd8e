"""Train a tiny LLaDA-format model on `dpad.models.corpus` and write it as a checkpoint directory.

    python -m dpad.models.train --out runs/tiny --steps 6000 [--resume]
    python -m dpad.models.train --out runs/tiny --eval

The objective is LLaDA's supervised one (arXiv 2502.09992, section 2.3): a share t of the
answer is masked, the prompt never; cross entropy of the masked tokens is weighted 1/t and
divided by the answer's length, which counts the EOS that fill the canvas. On half of the
samples the far suffix is thinned as DPad does (arXiv 2508.14148) with positions kept.
Data and masks are a function of seed and step, so a resumed run ends in the same weights.
"""

import json
import os
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.optim import AdamW, Muon, Optimizer

from dpad.models import corpus
from dpad.models.llada import Config, Model
from dpad.runtime.errors import CheckpointError

SHIPPED = Path(__file__).parent / "tiny"
FIXED = ("config.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on, apart from the number of steps."""

    seed: int = 0
    batch: int = 24
    rate: float = 6e-3
    decay: float = 0.02
    warmup: float = 0.02
    cooldown: float = 0.5
    pool: int = 8  # batches drawn together and bucketed by length


@dataclass(frozen=True)
class Batch:
    """Rows that take part: ids (after masking), positions, targets int64 [B, R], weight float32 [B, R]."""

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor


class Data:
    """Batches as a pure function of recipe and step."""

    def __init__(self, recipe: Recipe, text: corpus.Text) -> None:
        self.recipe, self.text = recipe, text
        self._pool = lru_cache(maxsize=1)(self._draw)

    def _draw(self, index: int) -> list[list[tuple[list[int], list[int]]]]:
        """Pool `index`: encoded examples sorted by length and cut into batches, in random order."""
        rng = random.Random(f"pool {self.recipe.seed} {index}")
        size = self.recipe.batch
        examples = [corpus.sample(rng, "train") for _ in range(size * self.recipe.pool)]
        encoded = [(self.text.prompt(e.question), self.text.encode(e.answer)) for e in examples]
        encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        rng.shuffle(batches)
        for batch in batches:  # its place in the batch decides a sample's t, so no order by length
            rng.shuffle(batch)
        return batches

    def batch(self, step: int) -> Batch:
        """The batch of `step`; t is stratified over the batch to lower the variance of the loss."""
        examples = self._pool(step // self.recipe.pool)[step % self.recipe.pool]
        random_state = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        rng = random.Random(f"batch {self.recipe.seed} {step}")
        slack = rng.choices((2, 8, 16, 32, 64, 128), (6, 6, 4, 3, 2, 1))[0]
        rows = -(-(max(len(p) + len(a) for p, a in examples) + slack) // 16) * 16
        positions = torch.stack([_kept(len(p), rows, rng, random_state) for p, _ in examples])
        targets = torch.full((len(examples), int(positions.max()) + 1), self.text.eos)
        for row, (prompt, answer) in enumerate(examples):
            targets[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        targets = targets.gather(1, positions)
        answers = positions >= torch.tensor([len(p) for p, _ in examples])[:, None]
        strata = torch.arange(len(examples)) + torch.rand(len(examples), generator=random_state)
        t = (strata / len(examples)).clamp(min=1e-3)[:, None]
        masked = (torch.rand(targets.shape, generator=random_state) < t) & answers
        weight = masked / t / answers.sum(dim=1, keepdim=True) / len(examples)
        return Batch(torch.where(masked, self.text.mask, targets), positions, targets, weight)


def _kept(prompt: int, rows: int, rng: random.Random, random_state: torch.Generator) -> torch.Tensor:
    """Positions int64 [rows] of one sample: all, or all up to a block's end and a thinned suffix."""
    if rng.random() < 0.5:
        return torch.arange(rows)
    length = rows + rng.randint(1, 384)
    end = min(rows, prompt + 32 * rng.randint(1, 4))
    distance = (torch.arange(length) - end) / (length - end)
    chance = torch.exp(-0.5 * (4 * distance) ** 2) + 0.02
    priority = torch.rand(length, generator=random_state).log() / chance
    priority[:end] = 1.0
    return priority.topk(rows).indices.sort().values


def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Full attention of the rows [B, R, H, D] over themselves."""
    rows = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return F.scaled_dot_product_attention(*rows).transpose(1, 2)


def new_model(config: Config, seed: int) -> Model:
    """Weights by fan-in, residual outputs and head smaller; embeddings too large to be blurred early."""
    model = Model(config)
    random_state = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = 1.0 if "wte" in name else weight.shape[1] ** -0.5
            std *= (2 * config.layers) ** -0.5 if name.endswith(("attn_out.weight", "ff_out.weight")) else 1.0
            torch.nn.init.normal_(weight, std=std, generator=random_state)
    return model


def loss_of(model: Model, batch: Batch) -> torch.Tensor:
    """The masked, 1/t-weighted cross entropy of a batch, a scalar; logits of masked rows only."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(batch.ids.to(device), batch.positions.to(device), attend)
        chosen = batch.weight.flatten().nonzero()[:, 0]
        chosen = F.pad(chosen, (0, -len(chosen) % 256))  # row 0 is prompt, weight 0; few shapes are faster
        logits = model.logits(hidden.flatten(0, 1)[chosen.to(device)])
    targets, weight = (x.flatten()[chosen].to(device) for x in (batch.targets, batch.weight))
    return (F.cross_entropy(logits, targets, reduction="none") * weight).sum()


class Trainer:
    """Model, optimizers and clock; matrices of the blocks go to Muon, all else to AdamW."""

    CLOCK = ("step", "rows", "seconds", "loss")

    def __init__(self, model: Model, data: Data) -> None:
        self.model, self.data, self.recipe = model, data, data.recipe
        matrices = {n: w for n, w in model.named_parameters() if ".blocks." in n and w.ndim == 2}
        rest = [w for n, w in model.named_parameters() if n not in matrices]
        self.optimizers: list[Optimizer] = [
            Muon(list(matrices.values()), weight_decay=self.recipe.decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.step, self.rows, self.seconds, self.loss = 0, 0, 0.0, 0.0

    def update(self, progress: float) -> None:
        """One step at `progress` in [0, 1) of the run."""
        begun = time.monotonic()
        recipe, batch = self.recipe, self.data.batch(self.step)
        share = min(1.0, (progress + 1e-3) / recipe.warmup, (1 - progress) / recipe.cooldown)
        loss = loss_of(self.model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * share
            optimizer.step()
            optimizer.zero_grad()
        self.loss += (float(loss.detach()) - self.loss) * (0.02 if self.step else 1.0)
        self.step, self.rows = self.step + 1, self.rows + batch.ids.numel()
        self.seconds += time.monotonic() - begun

    def save(self, path: Path) -> None:
        """Write everything needed to go on to `path`, all or nothing."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        state: dict[str, Any] = {"model": self.model.state_dict(), "optimizers": states}
        state |= {name: getattr(self, name) for name in self.CLOCK}
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        """Go on from `path`; data and masks follow from the step, so no other state is needed."""
        if not path.exists():
            raise CheckpointError(f"{path}: nothing to resume; start without --resume")
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name in self.CLOCK:
            setattr(self, name, state[name])


@torch.inference_mode()
def decode(model: Model, text: corpus.Text, prompts: list[list[int]], length: int) -> list[str]:
    """Answers to prompts of one length: greedy, blocks of 32, one token a step, whole canvas."""
    device, size = next(model.parameters()).device, len(prompts[0])
    canvas = torch.full((len(prompts), size + length), text.mask, device=device)
    canvas[:, :size] = torch.tensor(prompts)
    positions = torch.arange(size + length, device=device).expand_as(canvas)
    for start in range(size, size + length, 32):
        block = canvas[:, start : start + 32]
        for _ in range(block.shape[1]):
            logits = model.logits(model(canvas, positions, attend)[:, start : start + 32])
            confidence, tokens = logits.softmax(-1).max(-1)
            best = confidence.where(block == text.mask, -1.0).argmax(1, keepdim=True)
            block.scatter_(1, best, tokens.gather(1, best))
        if bool((canvas == text.eos).any(1).all()):
            break
    return [text.decode(row[size:]) for row in canvas.tolist()]


def evaluate(model: Model, text: corpus.Text, count: int, length: int) -> tuple[dict[str, float], str]:
    """Share of right answers by kind, over `count` held-out examples of each, and a sample of each."""
    kinds = (*corpus.PROBLEMS, "count", "table")
    examples = corpus.heldout(1, count * len(kinds), kinds)
    prompts = [text.prompt(example.question) for example in examples]
    answers: dict[int, str] = {}
    for size in sorted({len(prompt) for prompt in prompts}):
        group = [i for i, prompt in enumerate(prompts) if len(prompt) == size]
        answers |= zip(group, decode(model, text, [prompts[i] for i in group], length), strict=True)
    right = dict.fromkeys(kinds, 0)
    for i, example in enumerate(examples):
        right[kinds[i % len(kinds)]] += corpus.is_right(answers[i], example)
    shown = "\n\n".join(f"> {examples[i].question}\n{answers[i]}" for i in range(len(kinds)))
    return {kind: round(n / count, 4) for kind, n in right.items()}, shown


def export(model: Model, tokenizer: Tokenizer, out: Path) -> None:
    """Write the checkpoint directory: weights, tokenizer, configuration and chat template."""
    for name in FIXED:
        (out / name).write_bytes((SHIPPED / name).read_bytes())
    tokenizer.save(str(out / "tokenizer.json"))
    weights = {name: weight.cpu().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, out / "model.safetensors.part", {"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")


def train(trainer: Trainer, out: Path, steps: int | None, minutes: float | None) -> None:
    """Run to the end of `steps` or `minutes`, saving every 250 steps and at the end."""
    while (progress := trainer.seconds / 60 / minutes if minutes else trainer.step / (steps or 1)) < 1:
        trainer.update(progress)
        if trainer.step % 50 == 0:
            left = trainer.seconds * (1 / max(progress, 1e-9) - 1) / 60
            told = f"{trainer.loss:.4f}  {trainer.rows / trainer.seconds:.0f} tok/s  {left:.1f} min left"
            click.echo(f"step {trainer.step}  loss {told}")
        if trainer.step % 250 == 0:
            trainer.save(out / "training.pt")
    trainer.save(out / "training.pt")
    export(trainer.model, trainer.data.text.tokenizer, out)


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--steps", type=int, help="Length of the run; the same steps give the same weights.")
@click.option("--minutes", type=float, help="Length of the run in training time, instead of --steps.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=int, help="CPU threads; PyTorch decides by default.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--resume", is_flag=True, help="Go on from OUT/training.pt.")
@click.option("--eval", "only_eval", is_flag=True, help="Do not train; measure the checkpoint in OUT.")
@click.option("--count", type=int, default=20, show_default=True, help="Held-out problems of each kind.")
@click.option("--length", type=int, default=128, show_default=True, help="Canvas behind the prompt.")
def main(
    out: Path,
    steps: int | None,
    minutes: float | None,
    seed: int,
    threads: int | None,
    device: str,
    resume: bool,
    only_eval: bool,
    count: int,
    length: int,
) -> None:
    """Train a tiny LLaDA-format model, then measure it on held-out problems."""
    if not only_eval and (steps is None) == (minutes is None):
        raise click.UsageError("give --steps or --minutes")
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    out.mkdir(parents=True, exist_ok=True)
    stored = Tokenizer.from_file(str(out / "tokenizer.json")) if only_eval or resume else None
    text = corpus.Text(stored or corpus.build_tokenizer(seed), (SHIPPED / "chat_template.jinja").read_text())
    config = Config.from_json(json.loads((SHIPPED / "config.json").read_text()))
    model = new_model(config, seed).to(device)
    if only_eval:
        model.load_state_dict(load_file(out / "model.safetensors", device=device))
    else:
        trainer = Trainer(model, Data(Recipe(seed), text))
        text.tokenizer.save(str(out / "tokenizer.json"))
        if resume:
            trainer.load(out / "training.pt")
        train(trainer, out, steps, minutes)
    scores, shown = evaluate(model, text, count, length)
    click.echo(f"{shown}\n\n{json.dumps(scores)}")


if __name__ == "__main__":
    main()
