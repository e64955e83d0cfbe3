"""Tests of the modules that lie in imagekin/ itself."""
