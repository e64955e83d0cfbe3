"""What is read from outside: images, or vectors, with their keys, labels and payloads; one definition for everything.

Training, batch indexing and the command all read through `sources.opening`.
"""
