"""Writes a bundle: stages it, lists its files, and puts it in place in one step."""
