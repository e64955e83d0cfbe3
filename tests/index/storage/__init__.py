"""Tests of index/storage/."""
