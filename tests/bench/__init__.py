"""Tests of the measurements: their small forms run, and they say what they missed."""
