"""`dpad serve DIR`."""

from contextlib import ExitStack
from pathlib import Path

import click

from dpad import load
from dpad.commands.lines import say
from dpad.commands.opening import progress
from dpad.runtime.decoding.limits import WAITING
from dpad.runtime.errors import InvalidRequest
from dpad.serving.keys import Keys, is_loopback
from dpad.serving.server import address, listening, serve
from dpad.serving.settings import PATIENCE, Settings
from dpad.serving.wire import Opening

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
@click.option(
    "--patience",
    default=PATIENCE,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Most seconds for a pass, until the server is not ready.",
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
    patience: float,
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
        patience_seconds=patience,
        max_waiting=max_waiting,
    )
    options = {"engine": engine, "threads": threads, "slots": slots, "max_running": max_running}
    options["max_waiting"] = max_waiting + WAITING  # only the server refuses: see `Service`
    with listening(host, port) as socket, ExitStack() as opening:
        tell = opening.enter_context(progress())

        def ready(engine: str) -> None:
            opening.close()
            where = f"{settings.name} over {engine} at {address(socket)}/v1"
            say(f"serving {where}\na page to try it: {address(socket)}/", err=True)

        context.exit(serve(Opening(load, directory, options), settings, socket, tell, ready))
