"""Tests of training/adaptation/."""
