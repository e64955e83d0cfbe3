"""Export a trained encoder as a model artifact, and check it."""
