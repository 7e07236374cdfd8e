"""Compares a bundle with PyTorch."""
