"""The model artifact and how to run it: bytes → pixels → embeddings.

Import from the modules: `errors`, `metadata` and `images` need only NumPy and Pillow; `session` needs ONNX Runtime.
"""
