"""The decoding options of every command that generates text.

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

# Option -> the decoders, or schedules, that use it; others ignore it.
_OF_DECODERS = {"threshold": ("threshold",), "factor": ("factor",), "steps": PLANNED, "pace": PLANNED}
_OF_SCHEDULES = {"window": ("gaussian", "uniform"), "k": ("gaussian",), "scale": ("gaussian",), "count": ("uniform",)}


def _option(name: str, default: Any, told: str, **more: Any) -> Callable[[F], F]:
    """An option that is None unless given, so that a preset may set it; the help text shows `default`."""
    return click.option(name, **{"type": type(default), **more}, default=None, show_default=str(default), help=told)


_OPTIONS = (
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="A name that `dpad inspect` lists; eager or eager-cuda for the reference in PyTorch.",
    ),
    click.option(
        "--threads",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="CPU threads of ONNX Runtime; 0 is one per core. For PyTorch set OMP_NUM_THREADS.",
    ),
    click.option(
        "--preset",
        help="A named set of options in the bundle; options given here override it. Default: the preset `default`; "
        "`dpad eval` first looks for a preset with the name of the --task.",
    ),
    _option("--gen-length", 128, "New tokens on the canvas."),
    _option("--block-length", 32, "Tokens decoded together."),
    _option("--cache", "prefix", "Which keys and values are cached.", type=click.Choice([*CACHES, BLOCKS])),
    _option("--decoder", "threshold", "The rule that commits tokens in a step.", type=click.Choice(DECODERS)),
    _option("--threshold", 0.9, "Confidence at which the threshold decoder commits a token."),
    _option("--factor", 1.0, "Factor of the factor decoder (Fast-dLLM)."),
    click.option(
        "--steps", type=int, help="Total steps of the fixed, entropy and margin decoders. Default: one per token."
    ),
    _option("--pace", "even", "How --steps divide the masks: evenly, or by Dream's noise.", type=click.Choice(PACES)),
    _option("--schedule", "gaussian", "Suffix dropout; none keeps the whole suffix.", type=click.Choice([*SCHEDULES])),
    click.option("--window", type=int, help="Suffix tokens that may survive. Default: 256, at most --gen-length."),
    _option("--k", 4.0, "Standard deviations that the Gaussian window spans."),
    _option("--scale", 2.0, "Scale of the Gaussian keep probability."),
    _option("--count", 32, "Suffix tokens that the uniform schedule keeps."),
    _option("--temperature", 0.0, "0 is greedy."),
    click.option("--top-k", type=int, help="Draw from the k likeliest tokens."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens that together reach this probability."),
    _option("--seed", 0, "Seed of the suffix dropout and of the draws."),
    click.option(
        "--early-termination/--no-early-termination",
        default=None,
        show_default="early-termination",
        help="Stop when a finished block contains EOS.",
    ),
)


def decoding_options(command: F) -> F:
    """Decorate `command` with `--engine`, `--threads` and all decoding options, in the order of the help text."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(model: DiffusionModel, options: dict[str, Any]) -> dict[str, Any]:
    """The options given on the command line, as arguments for `model.generate`; the preset sets the others.

    `schedule`, `window`, `k`, `scale` and `count` become one schedule; parameters not given are the preset's.
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
    """`options` of a command without the schedule's, which `instead` replaces; notes on stderr any that were given."""
    for name in ("schedule", *_OF_SCHEDULES):
        if options[name] is not None:
            click.echo(f"note: --{name} does nothing with {instead}", err=True)
    return options | dict.fromkeys(("schedule", *_OF_SCHEDULES))


def _note_unread(given: set[str], options: GenerationOptions) -> None:
    """Note on standard error the options that were given but have no effect."""
    for kind, name, readers in (
        ("decoder", options.decoder, _OF_DECODERS),
        ("schedule", name_of(options.schedule), _OF_SCHEDULES),
    ):
        for option in sorted(given & readers.keys()):
            if name not in readers[option]:
                click.echo(f"note: --{option} does nothing with --{kind} {name}", err=True)
