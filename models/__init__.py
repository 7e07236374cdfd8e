"""The model families as plain PyTorch modules, and the step that is traced from them."""
