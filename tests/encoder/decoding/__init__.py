"""Tests of encoder/decoding/."""
