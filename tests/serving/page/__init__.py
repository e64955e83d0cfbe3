"""Tests of the page: its files, and what people do on it in a real browser."""
