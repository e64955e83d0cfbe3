"""Tests of encoder/."""
