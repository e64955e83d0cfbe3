"""Tests of the examples: each runs as its reader would run it."""
