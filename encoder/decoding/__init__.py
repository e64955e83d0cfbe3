"""Decode image files; the only decoder of the project."""
