"""A bundle against PyTorch."""
