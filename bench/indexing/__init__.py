"""Measurements of reading and indexing sources."""
