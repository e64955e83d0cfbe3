"""Read each kind of source: one file a format."""
