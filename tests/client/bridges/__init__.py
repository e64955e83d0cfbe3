"""Tests of the bridges; `python -m tests.client.bridges` runs them with the libraries of today."""
