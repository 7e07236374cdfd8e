"""The parts of `make gpu-check`, one file each."""
