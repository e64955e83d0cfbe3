"""Call a server from an application, synchronously or with asyncio.

Needs gRPC, NumPy and Pillow, and nothing else of the project but the ground floor.
"""

if __name__ != "imagekin.client":
    raise ImportError("import imagekin.client, not client: under two names, every class would exist twice")
