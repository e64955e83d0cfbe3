"""Tests of kindred/."""
