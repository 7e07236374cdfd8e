"""`dpad replay RECEIPT DIR`."""

import json
from pathlib import Path

import click

from dpad.commands.lines import say
from dpad.commands.opening import opened
from dpad.runtime.bundle.files import read_json
from dpad.runtime.errors import InvalidRequest, ReplayError
from dpad.runtime.show import told
from dpad.serving.receipt import replay


@click.command("replay")
@click.argument("receipt", metavar="RECEIPT", type=click.Path(path_type=Path))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--engine", help="A name that `dpad inspect` lists. Default: the receipt's engine.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0 is one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(receipt: Path, directory: Path, engine: str | None, threads: int, as_json: bool) -> None:
    """Repeat the generation that RECEIPT records with the bundle DIR, and check that every pass commits the same."""
    try:
        document = read_json(receipt)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{receipt} cannot be read as a receipt: {told(error)}") from error
    name = engine or str(document.get("engine", "auto") if isinstance(document, dict) else "auto")
    with opened(directory, engine=name, threads=threads, warm=False) as model:
        passes, differs = replay(model, document)
    if differs is not None:
        raise ReplayError(
            f"pass {differs} differs: another version, engine or machine may decide near ties differently"
        )
    if as_json:
        click.echo(json.dumps({"passes": passes, "differs": None}))
    else:
        say(f"the same, pass for pass: {passes}")
