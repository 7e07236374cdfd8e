"""The command line: `dpad export | generate | parity | eval | inspect | plan | synth | plugin`.

Commands live one a file in `dpad.commands` and are imported when they are called, so that
`dpad generate` never loads torch.
"""

import json
import os
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from dpad.runtime.errors import DpadError, InvalidRequest, MissingExtra
from dpad.runtime.extras import needed_by

_COMMANDS = {
    "export": "Turn a checkpoint into a bundle.",
    "generate": "Write text with a bundle.",
    "parity": "Compare a bundle's engines with PyTorch.",
    "eval": "Measure a bundle on a task.",
    "inspect": "Show what a bundle holds and what runs here.",
    "plan": "Predict what engines need and how fast a step can be.",
    "synth": "Write a checkpoint with random weights in the authors' layout.",
    "plugin": "Compile the attention kernel for GPUs that are not here.",
}


class _Commands(click.Group):
    """Finds commands by name, and turns errors of this package and of the system into one line and exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        with needed_by(f"dpad {cmd_name}", MissingExtra):
            command = import_module(f"dpad.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            if sys.stdout is None:  # click would print nothing, and the command end as if it had
                raise InvalidRequest("standard output is closed; open it, or send it to /dev/null")
            return super().invoke(ctx)
        except (DpadError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # click ends quietly where nobody reads on
                raise
            if "--json" in sys.argv:
                with suppress(OSError):  # as where standard output is what failed
                    click.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
            click.echo(f"dpad: {type(error).__name__}: {error}", err=True)
            _drop_unwritable()
            ctx.exit(1)


def _drop_unwritable() -> None:
    """What standard output did not take, the interpreter would try to write at its end, and exit with status 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dpad")
def main() -> None:
    """Masked-diffusion language models with suffix dropout (DPad): checkpoint, engine, text."""
    warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"
