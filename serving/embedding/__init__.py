"""Embed images: admission, decoding, batching, inference."""
