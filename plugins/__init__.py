"""The sparse suffix attention op and its faces (torch, ONNX, Triton, TensorRT)."""
