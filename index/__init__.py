"""Store items and find their neighbours: storage, search, classification, batch indexing."""

if __name__ != "imagekin.index":
    raise ImportError("import imagekin.index, not index: under two names, every class would exist twice")
