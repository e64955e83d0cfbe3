"""Tests of sources/formats/."""
