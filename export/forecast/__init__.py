"""Predicts the memory and the speed of an engine before it is built."""
