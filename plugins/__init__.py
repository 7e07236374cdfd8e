"""The sparse suffix attention op and its implementations in torch, ONNX, Triton and TensorRT."""
