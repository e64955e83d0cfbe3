"""Keeps items and finds their neighbours: the store, search, classification, batch indexing."""
