"""Engines, which run a step: their interface, ONNX Runtime, and the choice of one that fits this machine."""
