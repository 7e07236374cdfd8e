"""The step that PyTorch compiles, as a program of the engine on a GPU."""
