"""Carry calls: listening, TLS, access, status codes, streams."""
