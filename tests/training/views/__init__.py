"""Tests of training/views/."""
