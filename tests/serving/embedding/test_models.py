"""A model is served as it was told, else as it was measured here, else by the cores."""

from pathlib import Path

from imagekin.encoder.runtime import tuning
from imagekin.encoder.runtime.tuning import Measurement, Tuning
from imagekin.machine import cores
from imagekin.serving.embedding.models import open_encoder
from imagekin.serving.settings import Settings
from tests.artifacts import tiny_artifact


def test_flags_come_before_what_was_measured_and_that_before_the_default(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "tiny.onnx")
    plain = Settings(models=(("tiny", model),), device="cpu")
    assert open_encoder(model, plain)[1] == tuning.default("cpu", cores())
    tuning.save(model, "cpu", Measurement(Tuning(3, 1, 8), 1.0))
    assert open_encoder(model, plain)[1] == Tuning(3, 1, 8)
    told = Settings(models=(("tiny", model),), device="cpu", encoder_threads=2, encoder_batch=5)
    assert open_encoder(model, told)[1] == Tuning(3, 2, 5)
