"""The commands of the `dpad` program, one per file."""
