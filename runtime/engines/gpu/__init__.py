"""Memory, shapes and recordings of a step on a GPU."""
