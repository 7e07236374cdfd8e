"""`dpad generate DIR PROMPT`."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dpad import Generation
from dpad.commands.decoding import chosen, decoding_options, without_schedule
from dpad.commands.lines import print_text
from dpad.commands.opening import opened
from dpad.runtime.bundle.files import open_file
from dpad.runtime.checks import is_integer
from dpad.runtime.decoding.suffix import Explicit
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import shown, told

_LARGEST = 64 << 20  # most bytes of suffix positions, and characters from standard input
_WANTED = "[[60, 61], []], a list of canvas positions for each block,"


@click.command("generate")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@decoding_options
@click.option(
    "--ids",
    help="Instead of PROMPT: token ids separated by blanks or commas, or a JSON list; - reads standard input.",
)
@click.option(
    "--positions",
    metavar="JSON",
    help="Instead of a schedule: for each block the suffix positions to keep, as canvas positions (JSON or a file of "
    "it; - reads standard input).",
)
@click.option("--deadline", type=float, help="Seconds after which generation stops with the text so far.")
@click.option("--suffix", help="Text behind the generated text (infill).")
@click.option("--raw", is_flag=True, help="Do not wrap PROMPT in the chat template.")
@click.option(
    "--parse-special", is_flag=True, help="Recognise special tokens in PROMPT, as a chat template writes them."
)
@click.option("--show-steps", is_flag=True, help="Show the canvas as it fills in.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    directory: Path,
    prompt: str | None,
    engine: str,
    threads: int,
    ids: str | None,
    positions: str | None,
    suffix: str | None,
    raw: bool,
    parse_special: bool,
    show_steps: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate text with the bundle DIR. If PROMPT is -, it is read from standard input.

    Without a tokenizer the new token ids are printed. On a terminal, control characters in the text are escaped.
    """
    if (prompt is None) == (ids is None):
        raise click.UsageError(
            "Missing argument 'PROMPT', or --ids." if ids is None else "Give PROMPT or --ids, not both."
        )
    if [prompt, ids, positions].count("-") > 1:
        raise click.UsageError("Only one of PROMPT, --ids and --positions can be read from standard input.")
    token_ids = None if ids is None else _token_ids(_standard_input("--ids") if ids == "-" else ids)
    if prompt == "-":
        prompt = _standard_input("PROMPT")
    _check_unicode(f"{prompt} {suffix}")
    with opened(
        directory, engine=engine, threads=threads, warm=False
    ) as model:  # warming up takes longer than it saves
        options = chosen(model, options if positions is None else without_schedule(options, "--positions"))
        given: str | list[int] = prompt if token_ids is None else token_ids  # type: ignore[assignment]
        if parse_special and prompt is not None:
            model.check_size(prompt)
            given = model.codec.encode_rendered(prompt)
        request = model.request(given, raw=raw, suffix=suffix)
        if positions is not None:
            options["schedule"] = _explicit(positions, len(request.prompt_ids), model.options(**options).block_length)
        if show_steps:
            from dpad.commands.canvas import CanvasView

            contract, resolved = model.engine.contract, model.options(**options)
            resolved.check(contract)
            request.check(resolved, contract)
            codec = model.codec if model.has_tokenizer else None
            with CanvasView(codec, request, resolved, contract.eos_token_id) as view:
                result = model.generate(request, on_step=view.update, **options)
        else:
            result = model.generate(request, **options)
        name, has_text = model.engine.name, model.has_tokenizer
    if as_json:
        click.echo(json.dumps(_document(result, name)))
        return
    print_text(result.text if has_text else " ".join(map(str, result.token_ids)))
    timings = result.timings
    click.echo(
        f"[{name}: tokens {len(result.token_ids)}, forward passes {result.nfe}, {timings.total:.2f} s: "
        f"refresh {timings.refresh:.2f}, denoise {timings.denoise:.2f}, loop {timings.loop:.2f}]",
        err=True,
    )


def _standard_input(what: str) -> str:
    if sys.stdin is None:
        raise InvalidRequest(f"{what} - reads standard input, which is closed; open it, or give the {what} itself")
    try:
        text = sys.stdin.read(_LARGEST + 1)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is not text: {error}") from None
    if len(text) > _LARGEST:
        raise InvalidRequest(f"standard input has over {_LARGEST} characters, more than any canvas; shorten it")
    return text.removeprefix("\ufeff")


def _check_unicode(text: str) -> None:
    """Raise `InvalidRequest` for text that Python could not decode because the locale is not UTF-8."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and re.search("[\ud800-\udfff]", text):
        raise InvalidRequest(
            f"the text is not valid Unicode, because this locale's encoding is {encoding}, not UTF-8; "
            "set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
        )


def _token_ids(text: str) -> list[int]:
    """Read token ids as people write them; raises `InvalidRequest` for anything else."""
    try:
        if text.lstrip().startswith("["):
            data = json.loads(text)
            if isinstance(data, list) and all(map(is_integer, data)):
                return data
        elif not re.search(r"[^-0-9\s,]", text):
            return [int(part) for part in re.split(r"[\s,]+", text) if part]
    except (ValueError, RecursionError):
        pass
    raise InvalidRequest(f"--ids {shown(text)} must be integers separated by blanks or commas, or a JSON list of them")


def _explicit(positions: str, prompt_length: int, block_length: int) -> Explicit:
    """Read canvas positions for each block from `positions`: JSON, the name of a file of it, or `-`."""
    text = positions.strip()
    if not text:
        raise InvalidRequest(f"--positions is empty; give {_WANTED} or a file of it")
    try:
        data = json.loads(text if text[0] in "[{" else _read(positions))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"--positions is neither JSON nor a readable file of it: {told(error)}; give {_WANTED} or a file of it"
        ) from None
    if not isinstance(data, list) or not all(isinstance(kept, list) for kept in data):
        raise InvalidRequest(f"--positions {shown(data)} must be {_WANTED} as JSON")
    return Explicit.from_positions(data, prompt_length, block_length)


def _read(path: str) -> str:
    if path == "-":
        return _standard_input("--positions")
    with open_file(Path(path)) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"{path} has over {_LARGEST} bytes")
    return data.decode("utf-8-sig")


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
