"""Keep collections in a folder of this machine."""
