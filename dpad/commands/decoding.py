"""The decoding options of every command that writes text, defined once.

@click.command("generate")
@decoding_options
def command(engine: str, threads: int, **options: Any) -> None:
    options = with_schedule(options)        # the fields of GenerationOptions
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dpad.runtime.options import CACHES, DECODERS
from dpad.runtime.suffix import SCHEDULES, schedule_named

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="As `dpad inspect` names it; torch or torch-cuda for the eager reference.",
    ),
    click.option(
        "--threads",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="CPU threads of the engine; 0 is every core.",
    ),
    click.option("--gen-length", default=128, show_default=True, type=int, help="New tokens on the canvas."),
    click.option("--block-length", default=32, show_default=True, type=int, help="Tokens decoded together."),
    click.option(
        "--cache",
        default="prefix",
        show_default=True,
        type=click.Choice(CACHES),
        help="What is kept between the steps of a block.",
    ),
    click.option(
        "--decoder",
        default="threshold",
        show_default=True,
        type=click.Choice(DECODERS),
        help="Which masks are committed in a step.",
    ),
    click.option("--threshold", default=0.9, show_default=True, help="Confidence of the threshold decoder."),
    click.option("--factor", default=1.0, show_default=True, help="Of the factor decoder (Fast-dLLM)."),
    click.option(
        "--steps", type=int, help="Total steps of the fixed, entropy and margin decoders. Default: one a token."
    ),
    click.option(
        "--schedule",
        default="gaussian",
        show_default=True,
        type=click.Choice(SCHEDULES),
        help="Suffix dropout (DPad); none keeps the whole suffix.",
    ),
    click.option("--window", type=int, help="Suffix tokens that may survive. Default: 256, at most --gen-length."),
    click.option("--k", default=4.0, show_default=True, help="Standard deviations that the Gaussian window spans."),
    click.option("--scale", default=2.0, show_default=True, help="Of the Gaussian keep probability."),
    click.option("--count", default=32, show_default=True, help="Suffix tokens that the uniform schedule keeps."),
    click.option("--temperature", default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, help="Draw from the k likeliest tokens."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens that make up this probability."),
    click.option("--seed", default=0, show_default=True, type=int, help="Of the suffix dropout and of the draw."),
    click.option(
        "--early-termination/--no-early-termination",
        default=True,
        show_default=True,
        help="Stop when a block holds EOS.",
    ),
)


def decoding_options(command: F) -> F:
    """Decorate `command` with `--engine`, `--threads` and all options of decoding, in the order of the help text."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def with_schedule(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the schedule that `schedule`, `window`, `k`, `scale` and `count` describe in their place."""
    parameters = {name: options[name] for name in ("window", "k", "scale", "count")}
    rest = {name: value for name, value in options.items() if name not in parameters}
    return rest | {"schedule": schedule_named(options["schedule"], **parameters)}
