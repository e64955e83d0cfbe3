"""Name classes by labelled items, and measure how well."""
