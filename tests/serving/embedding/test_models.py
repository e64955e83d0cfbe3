"""Models run as they were told, else as measured, else by the cores, and refuse when none has room."""

from pathlib import Path

from imagekin.encoder.runtime import tuning
from imagekin.encoder.runtime.tuning import Measurement, Tuning
from imagekin.errors import ResourceExhaustedError
from imagekin.machine import cores
from imagekin.serving.embedding.admission import Load
from imagekin.serving.embedding.models import Models, open_encoder
from imagekin.serving.settings import Limits, Settings
from tests.artifacts import tiny_artifact


def test_flags_come_before_what_was_measured_and_that_before_the_default(tmp_path: Path) -> None:
    model = tiny_artifact(tmp_path / "tiny.onnx")
    plain = Settings(models=(("tiny", model),), device="cpu")
    assert open_encoder(model, plain)[1] == tuning.default("cpu", cores())
    tuning.save(model, "cpu", Measurement(Tuning(3, 1, 8), 1.0))
    assert open_encoder(model, plain)[1] == Tuning(3, 1, 8)
    told = Settings(models=(("tiny", model),), device="cpu", encoder_threads=2, encoder_batch=5)
    assert open_encoder(model, told)[1] == Tuning(3, 2, 5)


def test_an_image_is_refused_early_only_when_no_model_has_room_for_it(tmp_path: Path) -> None:
    paths = [tiny_artifact(tmp_path / f"{seed}.onnx", seed=seed) for seed in range(2)]
    limits = Limits(max_queue=16, max_batch_items=16)
    models = Models.open(Settings(models=(("one", paths[0]), ("two", paths[1])), device="cpu", limits=limits))
    full = Load(16, 1_600, 1.6)
    try:
        one, two = (model.pipeline.admission for model in models.all)
        assert (models.may_refuse(), models.refusal(None)) == (False, None)
        one.enter(("a caller",), full)
        assert (models.may_refuse(), models.refusal(None)) == (True, None)
        two.enter(("a caller",), full)
        assert isinstance(models.refusal(None), ResourceExhaustedError)
        one.leave(("a caller",), full, wanted=False)
        assert models.refusal(None) is None
    finally:
        models.close()
