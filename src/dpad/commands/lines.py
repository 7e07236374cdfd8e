"""Lines that people read: what a file or a model wrote in them cannot command a terminal.

say(f"{manifest.name}: ...")        # control characters as \\x1b; ends of lines and tabs stay
print_text(result.text)             # as it is where no terminal reads it
"""

import sys

import click

from dpad.runtime.show import escaped


def say(line: str, *, err: bool = False) -> None:
    """One line, or several, on standard output or standard error."""
    click.echo(escaped(line, lines=True), err=err)


def print_text(text: str) -> None:
    """Generated text: exact for a file or a program, harmless on a terminal."""
    click.echo(escaped(text, lines=True) if sys.stdout.isatty() else text, color=True)  # else click leaves some out
