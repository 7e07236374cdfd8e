"""`dpad serve DIR`."""

from pathlib import Path

import click

from dpad.commands.lines import say
from dpad.commands.opening import opened
from dpad.serving.server import address, listening, serve


@click.command("serve")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 is any free one.")
@click.option("--name", help="What clients call the model. Default: the name of DIR.")
@click.option("--engine", default="auto", show_default=True, help="As `dpad inspect` names it.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0 is every core.")
@click.option("--max-running", type=click.IntRange(1), help="Sequences decoded together. Default: 4 times --max-batch.")
@click.option("--max-waiting", default=64, show_default=True, type=click.IntRange(0), help="Sequences that may wait.")
@click.pass_context
def command(
    context: click.Context,
    directory: Path,
    host: str,
    port: int,
    name: str | None,
    engine: str,
    threads: int,
    max_running: int | None,
    max_waiting: int,
) -> None:
    """Serve the bundle DIR over HTTP, in OpenAI's protocol."""
    name = name or directory.resolve().name
    limits = {"max_running": max_running, "max_waiting": max_waiting}
    with listening(host, port) as socket, opened(directory, engine=engine, threads=threads, **limits) as model:

        def ready() -> None:
            say(f"serving {name} over {model.engine.name} at {address(socket)}/v1", err=True)

        context.exit(serve(model, name, socket, ready))
