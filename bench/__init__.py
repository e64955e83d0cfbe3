"""Side-by-side measurements against peers and limits: each script prints one table and one JSON line."""
