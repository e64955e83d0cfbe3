"""Hold open collections and write to them."""
