"""Tests of the review of a collection."""
