"""Answer requests: gRPC services, batching, limits and the life of the server process."""

if __name__ != "imagekin.serving":
    raise ImportError("import imagekin.serving, not serving: under two names, every class would exist twice")
