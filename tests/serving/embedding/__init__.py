"""Tests of serving/embedding/."""
