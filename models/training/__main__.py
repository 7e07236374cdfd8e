"""Train an embedded model on `dpad.models.training.corpus` and write it as a checkpoint directory.

python -m dpad.models.training tiny --out runs/tiny --steps 9000
python -m dpad.models.training tiny --out runs/tiny --steps 9000 --resume
python -m dpad.models.training tiny --out runs/more --steps 4000 --start runs/tiny     # train it further
"""

import os
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from dpad.models.checkpoint.checkpoint import FAMILIES, Checkpoint, parse_config, read_json
from dpad.models.training.batches import Data
from dpad.models.training.recipe import Recipe
from dpad.models.training.trainer import Trainer, initialise
from dpad.models.training.vocabulary import Text, build_tokenizer, number_values

SHIPPED = Path(__file__).parent.parent
FIXED = ("config.json", "tokenizer_config.json", "chat_template.jinja")


def special_tokens(settings: dict[str, Any]) -> list[str]:
    """The special tokens that tokenizer_config.json declares, in the order of their ids."""
    declared: dict[str, dict[str, Any]] = settings["added_tokens_decoder"]
    return [declared[index]["content"] for index in sorted(declared, key=int)]


def export(trainer: Trainer, source: Path, out: Path) -> None:
    """Write the checkpoint directory: averaged weights in float32, tokenizer, configuration and chat template."""
    for name in FIXED:
        shutil.copyfile(source / name, out / name)
    trainer.data.text.tokenizer.save(str(out / "tokenizer.json"))
    weights = {n: w.detach().to("cpu", copy=True).contiguous() for n, w in trainer.average.module.state_dict().items()}
    save_file(weights, out / "model.safetensors.part", {"format": "pt"})
    os.replace(out / "model.safetensors.part", out / "model.safetensors")


def train(trainer: Trainer, out: Path, steps: int) -> None:
    """Train up to `steps`; save every 500 steps, at the end, and when interrupted."""
    begun, spent = trainer.step, trainer.seconds  # steps and time of earlier runs, whose speed may differ
    try:
        while trainer.step < steps:
            trainer.update(trainer.step / steps)
            if trainer.step % 50 == 0:
                speed, pace = trainer.rows / trainer.seconds, (trainer.seconds - spent) / (trainer.step - begun)
                left = (steps - trainer.step) * pace / 60
                click.echo(f"step {trainer.step}  loss {trainer.loss:.4f}  {speed:.0f} rows/s  {left:.1f} min left")
            if trainer.step % 500 == 0:
                trainer.save(out / "training.pt")
    finally:
        trainer.save(out / "training.pt")


@click.command()
@click.argument("model", type=click.Choice(("tiny", "tiny-dream")))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--steps", type=int, required=True, help="Length of the run; the learning rate follows it.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=int, default=2, show_default=True, help="CPU threads.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--compile/--no-compile", "compiled", default=True, help="Compile the model; needs a C++ compiler.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Checkpoint directory to start from; the run then uses the recipe for further training.",
)
@click.option("--resume", is_flag=True, help="Continue from OUT/training.pt.")
def main(
    model: str,
    out: Path,
    steps: int,
    seed: int,
    threads: int,
    device: str,
    compiled: bool,
    start: Path | None,
    resume: bool,
) -> None:
    """Train an embedded MODEL; evaluate it with `dpad export` and `dpad eval`."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    source = SHIPPED / model
    architecture, config = parse_config(read_json(source / "config.json"))
    stored = out / "tokenizer.json"
    special = special_tokens(read_json(source / "tokenizer_config.json"))
    known = stored if resume else start and start / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(known)) if known else build_tokenizer(seed, special)
    network = FAMILIES[architecture].Model(config)
    if start and not resume:
        if Checkpoint.open(start).config != config:
            raise click.BadParameter(f"{start} is not a checkpoint of {model}", param_hint="--start")
        network.load_state_dict(load_file(start / "model.safetensors"))
    else:
        initialise(network, seed, number_values(tokenizer))
    recipe = Recipe.further(seed) if start else Recipe(seed)
    trainer = Trainer(network.to(device), Data(recipe, Text(tokenizer, source)), threads, compiled)
    tokenizer.save(str(stored))
    if resume:
        trainer.load(out / "training.pt")
    train(trainer, out, steps)
    export(trainer, source, out)


if __name__ == "__main__":
    main()
