"""Tests of index/classification/."""
