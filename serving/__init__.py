"""Answers requests: gRPC services, batching, limits and the life of the server process."""
