"""`python -m dpad` is the `dpad` program."""

from dpad.cli import main

main(prog_name="dpad")
