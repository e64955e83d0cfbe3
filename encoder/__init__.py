"""Decode images and run model artifacts.

Nothing is imported here: `metadata` and `decoding` need only NumPy and Pillow, `runtime` needs ONNX Runtime.
"""

if __name__ != "imagekin.encoder":
    raise ImportError("import imagekin.encoder, not encoder: under two names, every class would exist twice")
