"""Run model artifacts with ONNX Runtime."""
