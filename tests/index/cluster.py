"""A small Ray cluster on this machine, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

CORES = 2


@contextmanager
def local_cluster() -> Iterator[str]:
    """Start a cluster, connect this process to it, and yield its address."""
    import ray

    from index.on_ray import Workers, connected

    with connected("local", Workers(CORES)):
        yield str(ray.get_runtime_context().gcs_address)
