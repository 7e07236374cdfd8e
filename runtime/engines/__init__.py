"""What runs a step: the seam, ONNX Runtime, and which engine fits this machine."""
