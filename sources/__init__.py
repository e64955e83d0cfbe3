"""Read images or vectors with their keys, labels and payloads from folders, archives, tables and URLs.

Training, batch indexing and the command all use `imagekin.sources.open`.
"""

if __name__ != "imagekin.sources":
    raise ImportError("import imagekin.sources, not sources: under two names, every class would exist twice")
