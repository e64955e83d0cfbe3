"""Two-dimensional maps of collections: made by UMAP from neighbours, saved beside the items, and looked at."""
