"""The commands of the `dpad` program, one a file."""
