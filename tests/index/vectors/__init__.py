"""Tests of index/vectors/."""
