"""Tests of encoder/runtime/."""
