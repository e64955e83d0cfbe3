"""A JPEG photo that is much larger than the model's input is decoded smaller, and nobody can tell."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagekin.encoder.decoding import decode
from imagekin.encoder.decoding.decode import DecodeLimits
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import ImageError


def photo(width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    """Return a JPEG file with structure at every scale."""
    rng = np.random.default_rng(1)
    mixed = np.zeros((height, width, 3), np.float32)
    for side, weight in ((4, 0.4), (16, 0.3), (64, 0.2), (256, 0.1)):
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        mixed += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    file = BytesIO()
    Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def fully(data: bytes, preprocess: Preprocess) -> NDArray[np.int64]:
    return decode.fit(decode.decode(data, background=preprocess.background), preprocess).astype(np.int64)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photo_is_decoded_smaller_and_looks_the_same(resize: Any, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo(1400, 1000, mode, quality=92, exif=exif.tobytes())
    for preprocess in (Preprocess(64, 64, resize), Preprocess(48, 96, resize, "bicubic", crop_fraction=0.875)):
        difference = np.abs(decode.load_pixels(data, preprocess).astype(np.int64) - fully(data, preprocess))
        assert difference.mean() < 1.5
        assert difference.max() < 24


def test_a_photo_is_never_decoded_below_twice_what_the_model_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(decode, "fit", lambda image, preprocess: seen.append(image.size))
    for side in (100, 127, 128, 255, 256, 400, 511, 512, 513, 2000):
        decode.load_pixels(photo(side, side + 40), Preprocess(64, 64))
    assert [size[0] for size in seen] == [100, 127, 128, 255, 128, 200, 256, 128, 129, 250]


def test_the_limit_on_pixels_is_of_the_whole_photo() -> None:
    with pytest.raises(ImageError, match="over the limit"):
        decode.load_pixels(photo(1000, 1000), Preprocess(8, 8), DecodeLimits(max_pixels=999_999))
