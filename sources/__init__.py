"""Read what comes from outside: images, or vectors, with their keys, labels and payloads.

Training, batch indexing and the command all read through `imagekin.sources.open`.
"""

if __name__ != "imagekin.sources":
    raise ImportError("import imagekin.sources, not sources: under two names, every class would exist twice")
