"""Compiled engines: which ones a bundle gets, and how they are built."""
