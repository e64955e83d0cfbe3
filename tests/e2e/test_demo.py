"""`kindred demo`: from nothing to answers over gRPC, twice."""

import json
from pathlib import Path

from tests.e2e.processes import run


def test_the_demo_reaches_its_figures_and_runs_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = run("demo", "--json", "--out", str(tmp_path / "demo"), cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout.splitlines()[-1])
        assert figures["knn_accuracy"] >= 0.98
        assert figures["linear_accuracy"] >= 0.95
        assert figures["onnx_max_abs_diff"] <= 1e-4
        assert figures["embeddings_per_second"] > 0
