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
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 is any free port.")
@click.option("--name", help="Name of the model for clients. Default: the name of DIR.")
@click.option("--engine", default="auto", show_default=True, help="A name that `dpad inspect` lists.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0 is one per core.")
@click.option("--max-running", type=click.IntRange(1), help="Sequences decoded together. Default: 4 times --max-batch.")
@click.option("--max-waiting", default=64, show_default=True, type=click.IntRange(0), help="Sequences that may wait.")
@click.option(
    "--slots", type=click.IntRange(1), help="Tokens that fit into the KV cache. Default: the bundle's limits."
)
@click.option("--api-key-file", type=click.Path(path_type=Path), help="File of accepted API keys, one per line.")
@click.option("--allow-anonymous", is_flag=True, help="Serve everybody who can reach --host without a key.")
@click.option("--allow-origin", multiple=True, help="Origin of web pages that may call the server (CORS); repeatable.")
@click.option("--max-body", default=1 << 20, show_default=True, type=click.IntRange(1), help="Most bytes of a request.")
@click.option(
    "--read-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Most seconds for receiving the head of a request, and then for its body.",
)
@click.option(
    "--drain",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Most seconds for finishing requests after SIGTERM.",
)
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
            f"other machines can reach {host}, and no key would be required; give --api-key-file, or --allow-anonymous "
            "if something else keeps strangers out"
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
