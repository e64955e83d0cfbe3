"""A model's tuning is measured on this machine, kept beside it, and holds for nothing else."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imagekin.encoder.runtime import tuning
from imagekin.encoder.runtime.session import Encoder
from imagekin.encoder.runtime.tuning import Measurement, Tuning
from imagekin.machine import cores, processor
from tests.artifacts import tiny_artifact


def test_every_candidate_fills_the_cores_and_no_more() -> None:
    for usable in (1, 2, 3, 4, 6, 16, 96):
        shapes = list(tuning._candidates("cpu", usable))
        assert shapes[-1] == (1, usable)
        assert all(usable / 2 < sessions * threads <= usable for sessions, threads in shapes)
        assert len(set(shapes)) == len(shapes)
        fallback = tuning.default("cpu", usable)
        assert fallback.sessions * fallback.threads <= usable


def test_a_gpu_has_batches_at_one_time_whatever_the_cores() -> None:
    fallback = tuning.default("cuda", 16)
    assert (fallback.sessions, fallback.threads) in list(tuning._candidates("cuda", 2))
    assert fallback.batch in tuning.BATCHES["cuda"]


def test_the_smallest_batch_near_the_best_rate_wins() -> None:
    rates = {Tuning(1, 2, 1): 80.0, Tuning(2, 1, 4): 97.5, Tuning(1, 2, 4): 98.0, Tuning(2, 1, 32): 100.0}
    assert tuning._choose([Measurement(*each) for each in rates.items()]).tuning == Tuning(1, 2, 4)


def test_what_was_measured_is_found_again_beside_the_model(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "tiny.onnx")
    assert tuning.load(model, "cpu") is None
    best, *others = tuning.measure(model, device="cpu", seconds=0.001, rounds=1)
    assert {each.tuning.batch for each in (best, *others)} == set(tuning.BATCHES["cpu"])
    assert best.rate > 0
    assert tuning.save(model, "cpu", best) == tmp_path / "tiny.onnx.tuning.json"
    assert tuning.load(model, "cpu") == best.tuning
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx", "tiny.onnx.tuning.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "another"},
        {"cores": 4097},
        {"device": "cuda"},
        {"model_bytes": 1},
        {"batch": 0},
        {"threads": "2"},
        {"sessions": True},
        None,
    ],
)
def test_a_tuning_of_another_machine_or_model_or_a_broken_one_is_passed_over(
    tmp_path: Path, change: dict[str, object] | None
) -> None:
    model = tiny_artifact(tmp_path / "tiny.onnx")
    path = tuning.save(model, "cpu", Measurement(Tuning(2, 1, 8), 1.0))
    entry = json.loads(path.read_text())
    assert (entry["processor"], entry["cores"]) == (processor(), cores())
    path.write_text("[" if change is None else json.dumps(entry | change))
    assert tuning.load(model, "cpu") is None


@pytest.mark.parametrize(("sessions", "threads"), [(3, 1), (2, 2), (1, None)])
def test_sessions_run_at_the_same_time_and_agree(tmp_path: Path, sessions: int, threads: int | None) -> None:
    model = tiny_artifact(tmp_path / "tiny.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 8, 8, 3), np.uint8)
    expected = [Encoder.open(model).embed_pixels(batch) for batch in pixels]
    encoder = Encoder.open(model, sessions=sessions, threads=threads)
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(encoder.embed_pixels, pixels), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)
