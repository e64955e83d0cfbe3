"""Tests of serving/observability/."""
