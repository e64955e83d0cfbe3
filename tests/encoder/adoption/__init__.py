"""Tests of encoder/adoption/."""
