"""Find neighbours in a snapshot of a collection."""
