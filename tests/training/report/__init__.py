"""Tests of training/report/."""
