"""`imagekin demo`: from nothing to answers over gRPC, in place of an earlier one."""

import json
from pathlib import Path

from imagekin.cli import demo_run
from imagekin.index.local.catalog import Catalog
from tests.artifacts import tiny_artifact
from tests.e2e.processes import run


def earlier(out: Path) -> None:
    """Leave what a demo of other weights, stopped at its end, has left: a run, digits, a collection and a port."""
    demo_run.prepare(out)
    (out / "run").mkdir()
    tiny_artifact(out / "run" / "model.onnx")
    (out / "run" / "config.json").write_text("{}")
    (out / "digits" / "train" / "3").mkdir(parents=True)
    (out / "digits" / "train" / "3" / "9999.png").write_bytes(b"no digit")
    (out / "port").write_text("1")
    with Catalog(out / "data") as catalog:
        catalog.create(demo_run.COLLECTION, space="ik1-earlier", dim=16)


def test_the_demo_reaches_its_figures_where_an_earlier_one_was(tmp_path: Path) -> None:
    earlier(tmp_path / "demo")
    done = run("demo", "--json", "--out", str(tmp_path / "demo"), cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["knn_accuracy"] >= 0.98
    assert figures["linear_accuracy"] >= 0.95
    assert figures["onnx_max_abs_diff"] <= 1e-4
    assert figures["embeddings_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
