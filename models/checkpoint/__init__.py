"""Checkpoint directories: which files hold what, and what is wrong with them."""
