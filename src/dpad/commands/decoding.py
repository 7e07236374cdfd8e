"""The decoding options of every command that writes text, defined once.

@click.command("generate")
@decoding_options
def command(engine: str, threads: int, **options: Any) -> None:
    options = chosen(model, options)        # keyword arguments of `DiffusionModel.generate`
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dpad import DiffusionModel
from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.decoding.options import DECODERS, PACES, PLANNED, GenerationOptions
from dpad.runtime.decoding.presets import SCHEDULES, name_of, schedule_named

F = TypeVar("F", bound=Callable[..., Any])

# Which decoders, or schedules, read an option that others leave unread.
_OF_DECODERS = {"threshold": ("threshold",), "factor": ("factor",), "steps": PLANNED, "pace": PLANNED}
_OF_SCHEDULES = {"window": ("gaussian", "uniform"), "k": ("gaussian",), "scale": ("gaussian",), "count": ("uniform",)}


def _option(name: str, default: Any, told: str, **more: Any) -> Callable[[F], F]:
    """An option that is None unless given, so that a preset may say otherwise; `default` is what help shows."""
    return click.option(name, **{"type": type(default), **more}, default=None, show_default=str(default), help=told)


_OPTIONS = (
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="As `dpad inspect` names it; eager or eager-cuda for the reference in PyTorch.",
    ),
    click.option(
        "--threads",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="CPU threads of ONNX Runtime; 0 is every core. For PyTorch set OMP_NUM_THREADS.",
    ),
    click.option(
        "--preset",
        help="Options under a name that the bundle brings; those given here go before them. Default: one called "
        "default, and for `dpad eval` before it one called as the --task.",
    ),
    _option("--gen-length", 128, "New tokens on the canvas."),
    _option("--block-length", 32, "Tokens decoded together."),
    _option("--cache", "prefix", "What is kept between the steps of a block.", type=click.Choice([*CACHES, BLOCKS])),
    _option("--decoder", "threshold", "Which masks are committed in a step.", type=click.Choice(DECODERS)),
    _option("--threshold", 0.9, "Confidence of the threshold decoder."),
    _option("--factor", 1.0, "Of the factor decoder (Fast-dLLM)."),
    click.option(
        "--steps", type=int, help="Total steps of the fixed, entropy and margin decoders. Default: one a token."
    ),
    _option("--pace", "even", "How --steps share the masks: evenly, or by Dream's noise.", type=click.Choice(PACES)),
    _option("--schedule", "gaussian", "Suffix dropout; none keeps the whole suffix.", type=click.Choice([*SCHEDULES])),
    click.option("--window", type=int, help="Suffix tokens that may survive. Default: 256, at most --gen-length."),
    _option("--k", 4.0, "Standard deviations that the Gaussian window spans."),
    _option("--scale", 2.0, "Of the Gaussian keep probability."),
    _option("--count", 32, "Suffix tokens that the uniform schedule keeps."),
    _option("--temperature", 0.0, "0 is greedy."),
    click.option("--top-k", type=int, help="Draw from the k likeliest tokens."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens that make up this probability."),
    _option("--seed", 0, "Of the suffix dropout and of the draw."),
    click.option(
        "--early-termination/--no-early-termination",
        default=None,
        show_default="early-termination",
        help="Stop when a block holds EOS.",
    ),
)


def decoding_options(command: F) -> F:
    """Decorate `command` with `--engine`, `--threads` and all options of decoding, in the order of the help text."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(model: DiffusionModel, options: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line, for `model.generate`; the rest is left to the preset.

    `schedule`, `window`, `k`, `scale` and `count` become one schedule, over that of the preset.
    """
    given = {name: value for name, value in options.items() if value is not None}
    named = set(given)
    parameters = {name: given.pop(name) for name in ("window", "k", "scale", "count") if name in given}
    name = given.pop("schedule", None)
    if name or parameters:
        base = model.options(**{**given, "preset": options["preset"]}).schedule
        given["schedule"] = schedule_named(name or name_of(base), base, **parameters)
    _note_unread(named, model.options(**given))
    return given


def without_schedule(options: dict[str, Any], instead: str) -> dict[str, Any]:
    """`options` of a command without those of a schedule, where `instead` counts; says so on standard error."""
    for name in ("schedule", *_OF_SCHEDULES):
        if options[name] is not None:
            click.echo(f"note: --{name} does nothing with {instead}", err=True)
    return options | dict.fromkeys(("schedule", *_OF_SCHEDULES))


def _note_unread(given: set[str], options: GenerationOptions) -> None:
    """Say on standard error what was given and counts for nothing."""
    for kind, name, readers in (
        ("decoder", options.decoder, _OF_DECODERS),
        ("schedule", name_of(options.schedule), _OF_SCHEDULES),
    ):
        for option in sorted(given & readers.keys()):
            if name not in readers[option]:
                click.echo(f"note: --{option} does nothing with --{kind} {name}", err=True)
