"""The command line: `dpad export | generate | serve | replay | parity | eval | inspect | report | plan | synth |
plugin`.

Each command is a file in `dpad.commands`, imported when the command is called, so that
`dpad generate` does not import torch.
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import click

from dpad import __version__
from dpad.runtime.errors import DpadError, InvalidRequest, MissingExtra
from dpad.runtime.extras import needed_by
from dpad.runtime.show import escaped, warned

_COMMANDS = {
    "export": "Turn a checkpoint into a bundle.",
    "generate": "Generate text with a bundle.",
    "replay": "Repeat the generation that a server's receipt records.",
    "parity": "Compare a bundle's engines with PyTorch.",
    "serve": "Serve a bundle over HTTP.",
    "eval": "Measure a bundle on a task.",
    "inspect": "Show what a bundle holds and what runs here.",
    "report": "Run a command and write a report for the maintainers.",
    "plan": "Predict the memory of engines and the least time of a step.",
    "synth": "Write a checkpoint with random weights in the authors' layout.",
    "plugin": "Compile the attention kernel ahead of time; needs no GPU.",
}


class _Commands(click.Group):
    """Finds commands by name, and reports errors of this package and the system as one line with exit status 1."""

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

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit; failures to write output are reported even for `--help` and `--version`."""
        run: Callable[[], Any] = partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            _check_streams()
            status = run()
        except click.ClickException as error:
            usage = io.StringIO()
            error.show(usage)
            _tell(escaped(usage.getvalue().rstrip(), lines=True))
            status = error.exit_code
        except click.Abort:  # click raises it on Ctrl-C
            _tell("dpad: stopped")
            status = 130
        except (DpadError, OSError, MemoryError) as error:
            told = escaped(str(error), lines=True) or "there is not enough memory"
            if "--json" in (sys.argv if args is None else args):
                with suppress(OSError):  # standard output may be what failed
                    click.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
            _tell(f"dpad: {type(error).__name__}: {told}".replace("\n", "\n  "))
            _drop_unwritable()
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def _check_streams() -> None:
    """Open /dev/null for closed standard streams; otherwise a later file could get their number, and their output.

    Raises `InvalidRequest` if standard output is closed: click would print nothing, and the command would succeed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdout is None:
        raise InvalidRequest("standard output is closed; open it, or send it to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for characters that its encoding lacks


def _tell(message: str) -> None:
    """Write an error to standard error, if possible."""
    with suppress(OSError):
        click.echo(message, err=True)


def _drop_unwritable() -> None:
    """Drop output that standard output did not take; the interpreter would try again at exit, with status 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Export, run and serve masked-diffusion language models with suffix dropout (DPad)."""
    warnings.formatwarning = warned
