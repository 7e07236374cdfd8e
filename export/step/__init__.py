"""One denoising step as ONNX, and its weights."""
