"""Tests of reviewing a collection."""
