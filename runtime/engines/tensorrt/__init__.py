"""Plans of TensorRT and TensorRT-RTX as engines."""
