"""Measurements beside peers and limits: each script prints one table and one JSON line."""
