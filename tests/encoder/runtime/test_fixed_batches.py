"""Batches of fixed sizes give what batches of any size give; tried on a CPU, where the code is the same."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekin.encoder.runtime.fixed_batches import BUCKETS, Bucketed, bucket_for
from tests.artifacts import tiny_artifact


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    path = tiny_artifact(tmp_path_factory.mktemp("models") / "tiny.onnx", classes=("a", "b", "c"))
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@given(st.integers(1, 200))
def test_a_batch_is_filled_up_to_the_next_size_and_no_further(count: int) -> None:
    size = bucket_for(count)
    assert size in BUCKETS
    assert size >= min(count, BUCKETS[-1])
    assert all(smaller < count for smaller in BUCKETS if smaller < size)


def test_every_number_of_images_gives_what_the_plain_session_gives(session: ort.InferenceSession) -> None:
    names = ["embedding", "logits"]
    bucketed = Bucketed(session, "pixels", names, (8, 8), "cpu", buckets=(1, 4, 8))
    for count in (1, 2, 3, 4, 5, 8, 9, 16, 21):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
        expected = session.run(names, {"pixels": pixels})
        for found, wanted in zip(bucketed.run(pixels), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_an_answer_is_not_overwritten_by_the_next(session: ort.InferenceSession) -> None:
    bucketed = Bucketed(session, "pixels", ["embedding"], (8, 8), "cpu", buckets=(4,))
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8, 3), np.uint8)
    wanted = [session.run(["embedding"], {"pixels": batch})[0] for batch in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: bucketed.run(batch)[0], images))
    np.testing.assert_allclose(np.stack(found), np.stack(wanted), atol=1e-6)
