"""Trials of a bundle before it is put in place."""
