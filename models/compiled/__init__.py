"""The step compiled by PyTorch, as a program of the GPU engine."""
