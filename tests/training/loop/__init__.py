"""Tests of training/loop/."""
