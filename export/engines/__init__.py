"""Compiled engines: what is built, and how."""
