"""The exporter: checkpoint to bundle, compiled engines, and the proof of parity."""
