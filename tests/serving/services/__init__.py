"""Tests of serving/services/."""
