"""`dpad generate DIR PROMPT`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dpad import Generation, load
from dpad.commands.decoding import chosen, decoding_options, without_schedule
from dpad.runtime.checks import is_integer
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.suffix import Explicit


@click.command("generate")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prompt")
@decoding_options
@click.option(
    "--positions",
    metavar="JSON",
    help="Instead of a schedule: for each block the suffix positions to keep, as canvas positions (JSON or a file).",
)
@click.option("--suffix", help="Text behind the generated text (infill).")
@click.option("--raw", is_flag=True, help="Do not wrap PROMPT in the chat template.")
@click.option("--parse-special", is_flag=True, help="PROMPT is as a chat template writes it: special tokens count.")
@click.option("--show-steps", is_flag=True, help="Show the canvas filling in.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    directory: Path,
    prompt: str,
    engine: str,
    threads: int,
    positions: str | None,
    suffix: str | None,
    raw: bool,
    parse_special: bool,
    show_steps: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write text with the bundle DIR. PROMPT - reads standard input."""
    if prompt == "-":
        prompt = _standard_input()
    with load(directory, engine=engine, threads=threads) as model:
        options = chosen(model, options if positions is None else without_schedule(options, "--positions"))
        model.check_size(prompt)
        given = model.codec.encode_rendered(prompt) if parse_special else prompt
        request = model.request(given, raw=raw, suffix=suffix)
        if positions is not None:
            options["schedule"] = _explicit(positions, len(request.prompt_ids), model.options(**options).block_length)
        if show_steps:
            from dpad.commands.canvas import CanvasView

            contract, resolved = model.engine.contract, model.options(**options)
            resolved.check(contract)
            request.check(resolved, contract)
            with CanvasView(model.codec, request, resolved, contract.eos_token_id) as view:
                result = model.generate(request, on_step=view.update, **options)
        else:
            result = model.generate(request, **options)
        name = model.engine.name
    if as_json:
        click.echo(json.dumps(_document(result, name)))
        return
    click.echo(result.text)
    timings = result.timings
    click.echo(
        f"[{name}: tokens {len(result.token_ids)}, forward passes {result.nfe}, {timings.total:.2f} s: "
        f"refresh {timings.refresh:.2f}, denoise {timings.denoise:.2f}, loop {timings.loop:.2f}]",
        err=True,
    )


def _standard_input() -> str:
    if sys.stdin is None:
        raise InvalidRequest("PROMPT - reads standard input, which is closed; open it, or give the text itself")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is no text: {error}") from None


def _explicit(positions: str, prompt_length: int, block_length: int) -> Explicit:
    """`positions` is JSON, or a file that holds it: for each block, canvas positions."""
    try:
        given = positions.lstrip().startswith("[")
        data = json.loads(positions if given else Path(positions).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"--positions is neither JSON nor a readable file of it: {error}") from None
    if not isinstance(data, list) or not all(isinstance(kept, list) and all(map(is_integer, kept)) for kept in data):
        raise InvalidRequest("--positions must be a list of blocks, each a list of canvas positions")
    return Explicit.from_positions(data, prompt_length, block_length)


def _document(result: Generation, engine: str) -> dict[str, Any]:
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "canvas": result.canvas.tolist(),
        "commit_steps": result.commit_steps.tolist(),
        "nfe": result.nfe,
        "engine": engine,
        "timings": asdict(result.timings),
    }
