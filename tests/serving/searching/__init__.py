"""Tests of serving/searching/."""
