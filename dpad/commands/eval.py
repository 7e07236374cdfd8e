"""`dpad eval DIR --task NAME`."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dpad import load
from dpad.commands.decoding import decoding_options, with_schedule
from dpad.commands.terminal import TerminalProgress
from dpad.evaluation import tasks
from dpad.evaluation.journal import Journal
from dpad.evaluation.report import Metrics, mean_scores, report
from dpad.evaluation.run import Work, evaluate, generate_answers, settings_of
from dpad.runtime.bundle import Bundle
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("eval")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--task", required=True, help=f"One of {', '.join(tasks.NAMES)}.")
@click.option("--data", type=FILE, help="JSON lines, plain or gzipped: what gsm8k, humaneval and texts are read from.")
@click.option("--limit", type=click.IntRange(1), help=f"Samples. Default: all of --data, else {tasks.LIMIT}.")
@click.option("--shots", default=0, show_default=True, type=click.IntRange(0), help="Worked examples before a problem.")
@click.option("--fewshot-data", type=FILE, help="Where gsm8k takes its worked examples from.")
@click.option(
    "--data-seed", default=0, show_default=True, type=click.IntRange(0), help="Of problems and worked examples."
)
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(1), help="Samples decoded together.")
@click.option("--out", type=FILE, help="Write results here, and each finished sample beside it, so that a rerun goes on.")
@decoding_options
@click.option("--raw", is_flag=True, help="Do not wrap prompts in the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(directory: Path, engine: str, threads: int, **arguments: Any) -> None:
    """Measure the bundle DIR on a task."""
