"""Adapt an artifact to labelled images: a small head on its embeddings, trained without running the encoder again."""
