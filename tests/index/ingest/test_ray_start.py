"""Starting a Ray cluster here: one that does not come up is ended and started anew, and in the end said in a line."""

import os
from pathlib import Path

import pytest

from imagekin.errors import UnavailableError

pytest.importorskip("ray", reason="ray is one of the dev extras")

import ray
from ray._private import services

from imagekin.index.ingest.ray_engine import connected


def servers() -> int:
    """Return how many of Ray's head servers run as children of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sum("gcs_server" in Path(f"/proc/{child}/cmdline").read_text().split("\0")[0] for child in children)


@pytest.fixture
def failing_starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return errors, one for each start that is to fail as Ray's do; more may be added. A busy machine adds none."""
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "120")
    errors: list[str] = []
    find = services.get_node

    def find_or_fail(*arguments: object) -> object:
        if errors:
            raise Exception(errors.pop())
        return find(*arguments)

    monkeypatch.setattr(services, "get_node", find_or_fail)
    return errors


def test_a_cluster_that_does_not_come_up_is_ended_and_started_anew(failing_starts: list[str]) -> None:
    assert not ray.is_initialized(), "a cluster of another test would be taken"
    failing_starts.append("The current node timed out during startup.\nMore of it.")
    with connected("local"):
        assert failing_starts == []
        assert ray.is_initialized()
        assert servers() == 1, "of the first start nothing is left"


def test_a_cluster_that_never_comes_up_is_one_line_and_leaves_nothing(failing_starts: list[str]) -> None:
    failing_starts.extend(["The current node timed out during startup.\nMore of it."] * 9)
    with pytest.raises(UnavailableError) as raised, connected("local"):
        pass
    assert str(raised.value) == "no Ray cluster started at local (The current node timed out during startup.)"
    assert 6 <= len(failing_starts) < 9, "three starts at most; on a busy machine one may fail before it gets here"
    assert servers() == 0
