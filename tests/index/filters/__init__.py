"""Tests of index/filters/."""
