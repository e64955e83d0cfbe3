"""The load generator counts what it sends, and the GPU's script says what it cannot measure."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from bench.serving.identity import EMBED, STREAM
from bench.serving.load import Load
from bench.serving.payloads import Payloads
from bench.serving.process import ROOT, environment, generate, started
from bench.serving.restart import restart
from bench.serving.sections import Bench
from tests.artifacts import tiny_artifact


def last_line(program: str, *arguments: str) -> dict[str, Any]:
    """Run a script of bench/ and return the JSON object on its last line."""
    command = [sys.executable, str(ROOT / "bench" / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_kind_of_load_reaches_a_server_that_does_nothing(tmp_path: Path) -> None:
    one, many = Payloads(tmp_path, []).random(1000)
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "bench.serving.identity", "imagekin", str(port_file), "8"]
    with started("identity", command, port_file=port_file) as served:
        plain = {"seconds": 0.3, "warm_up": 0.2, "pids": served.pids()}
        loads = {
            "closed": Load(served.address, EMBED, (one,), concurrency=4, **plain),  # type: ignore[arg-type]
            "open": Load(served.address, EMBED, (one,), rate=50, timeout=5, **plain),  # type: ignore[arg-type]
            "stream": Load(served.address, STREAM, (many,), streamed=True, **plain),  # type: ignore[arg-type]
        }
        found = {name: generate(load) for name, load in loads.items()}
    for outcome in found.values():
        assert set(outcome.codes) == {"OK"}
        assert 0 < outcome.good <= outcome.total_good
        assert len(outcome.good_ms) == outcome.good
        assert outcome.percentile(0.5) <= outcome.percentile(0.99)
    assert found["open"].good < 60


def test_a_writer_that_is_killed_under_load_loses_nothing_and_fails_no_call_of_a_replica(tmp_path: Path) -> None:
    found = restart(Bench(tmp_path, tmp_path / "none.onnx", None, [], [], [], 0.5, 1, 0.002, None)).figures
    assert found["acknowledged before the kills"] > 0
    assert found["… of them gone afterwards"] == 0
    assert found["searches of the replica meanwhile"] > 0
    assert found["… of them failed"] == 0
    assert found["writing calls that the kills broke"] == 4


def test_without_a_gpu_nothing_is_claimed(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    answer = last_line("gpu_serve.py", "--model", str(tmp_path / "none.onnx"))
    assert answer["figures"] is None


def test_the_gpus_script_runs_on_a_cpu(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "tiny.onnx")
    answer = last_line("gpu_serve.py", "--model", str(model), "--device", "cpu", "--seconds", "0.2", "--rounds", "1")
    assert answer["figures"]["served pixels over bare ONNX Runtime"] > 0
