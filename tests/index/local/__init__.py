"""Tests of index/local/."""
