"""Tests of training/objectives/."""
