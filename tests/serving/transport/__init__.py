"""Tests of serving/transport/."""
