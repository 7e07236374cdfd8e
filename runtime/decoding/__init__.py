"""The decode loop and what it decides: which positions take part, which tokens are committed."""
