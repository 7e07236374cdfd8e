"""`dpad synth MODEL DIR`."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from dpad.commands.lines import say
from dpad.commands.terminal import TerminalProgress
from dpad.export.forecast.layouts import LAYOUTS
from dpad.export.forecast.synthetic import write_checkpoint
from dpad.models.fields import MAX_LAYERS
from dpad.runtime.show import counted


@click.command("synth")
@click.argument("model", type=click.Choice(tuple(LAYOUTS)))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(1, MAX_LAYERS), help="Number of layers, at full width. Default: all.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(model: str, directory: Path, layers: int | None, seed: int, as_json: bool) -> None:
    """Write a checkpoint of MODEL's exact layout with random weights to DIR.

    It exports, compiles and runs like the real checkpoint, at the same speed, but its text is noise. Use it to size and
    measure engines before you download 16 GB.
    """
    began = time.perf_counter()
    summary = write_checkpoint(model, directory, layers, seed, TerminalProgress())
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "seconds": round(seconds, 3), **asdict(summary)}))
        return
    say(
        f"{directory}: {summary.architecture}, {summary.layers} layers, {summary.weights / 1e9:.2f} billion random "
        f"weights in {counted(summary.shards, 'file')}, {summary.size / 1e9:.1f} GB, {seconds:.1f} s\n"
        f"next: dpad export {directory} --out bundles/{directory.resolve().name}"
    )
