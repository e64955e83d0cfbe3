"""Compute with arrays of vectors and of their codes; nothing here knows of collections."""
