"""`dpad serve DIR`."""

from pathlib import Path
from typing import Any

import click

from dpad.commands.lines import say
from dpad.commands.opening import opened
from dpad.runtime.errors import InvalidRequest
from dpad.serving.keys import Keys, is_loopback
from dpad.serving.server import address, listening, serve
from dpad.serving.settings import Settings

_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


@click.command("serve")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 is any free one.")
@click.option("--name", help="What clients call the model. Default: the name of DIR.")
@click.option("--engine", default="auto", show_default=True, help="As `dpad inspect` names it.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0 is every core.")
@click.option("--max-running", type=click.IntRange(1), help="Sequences decoded together. Default: 4 times --max-batch.")
@click.option("--max-waiting", default=64, show_default=True, type=click.IntRange(0), help="Sequences that may wait.")
@click.option("--slots", type=click.IntRange(1), help="Tokens whose keys and values fit. Default: the bundle's limits.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="Keys that are let in, one a line.")
@click.option("--allow-anonymous", is_flag=True, help="Let everybody in who can reach --host, also from elsewhere.")
@click.option("--allow-origin", multiple=True, help="Of pages in browsers that may ask (CORS); several times.")
@click.option("--max-body", default=1 << 20, show_default=True, type=click.IntRange(1), help="Bytes of a request.")
@click.option(
    "--read-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds in which the head of a request has to come, and then its body.",
)
@click.option("--drain", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds after SIGTERM.")
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
    slots: int | None,
    api_key_file: Path | None,
    allow_anonymous: bool,
    allow_origin: tuple[str, ...],
    max_body: int,
    read_timeout: float,
    drain: float,
) -> None:
    """Serve the bundle DIR over HTTP, in OpenAI's protocol."""
    keys = Keys.read(api_key_file) if api_key_file else None
    here = is_loopback(host)
    if keys is None and not here and not allow_anonymous:
        raise InvalidRequest(
            f"others can reach {host}, and nobody would be asked for a key; give --api-key-file, or --allow-anonymous "
            "where something else keeps strangers out"
        )
    settings = Settings(
        name=name or directory.resolve().name,
        keys=keys,
        hosts=_OWN_NAMES if here else (),
        origins=allow_origin,
        most_body=max_body,
        read_seconds=read_timeout,
        drain_seconds=drain,
    )
    limits: Any = {"max_running": max_running, "max_waiting": max_waiting, "slots": slots}
    with listening(host, port) as socket, opened(directory, engine=engine, threads=threads, **limits) as model:
        where = f"{settings.name} over {model.engine.name} at {address(socket)}/v1"
        ready = f"serving {where}\na page to try it: {address(socket)}/"
        context.exit(serve(model, settings, socket, lambda: say(ready, err=True)))
