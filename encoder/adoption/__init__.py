"""Adopt image encoders that were exported to ONNX elsewhere."""
