"""A small Ray cluster on this machine, for tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

CORES = 2


@contextmanager
def local_cluster() -> Iterator[str]:
    """Start a cluster, connect this process to it, and yield its address."""
    # Ray's workers are nice to other processes, and starve beside those of a busy machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    from imagekin.index.ingest.ray_engine import RayWorkers, connected

    with connected("local", RayWorkers(CORES)):
        yield str(ray.get_runtime_context().gcs_address)
