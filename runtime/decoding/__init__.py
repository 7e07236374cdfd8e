"""The decode loop: which positions take part in a pass, and which tokens are committed."""
