"""Prints lines for people; text from a file or a model in them cannot control the terminal.

say(f"{manifest.name}: ...")        # control characters as \\x1b; newlines and tabs stay
print_text(result.text)             # unchanged if standard output is not a terminal
"""

import sys

import click

from dpad.runtime.show import escaped


def say(line: str, *, err: bool = False) -> None:
    """Print one line, or several, on standard output or standard error."""
    click.echo(escaped(line, lines=True), err=err)


def print_text(text: str) -> None:
    """Print generated text: unchanged for a file or a program, escaped on a terminal."""
    click.echo(escaped(text, lines=True) if sys.stdout.isatty() else text, color=True)  # without color click drops some
