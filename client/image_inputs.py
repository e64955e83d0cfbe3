"""Convert images of any form to the bytes of an image file, which are sent.

Files and bytes travel as they are, so that the server decodes exactly what a training run would; arrays and Pillow
images are encoded without loss. Pillow is loaded only for the latter.
"""

import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import ImageError, ImagekinError, InvalidArgumentError, NotFoundError
from imagekin.types import ImageLike

if TYPE_CHECKING:
    from PIL.Image import Image

# Modes that PNG stores without loss; the others (CMYK, YCbCr, F …) are sent as TIFF.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def image_bytes(image: ImageLike | ImagekinError) -> bytes:
    """Return the bytes of an image file that holds `image`.

    Args:
        image: a path; bytes, which are passed on; a Pillow image; or an array: uint8 [H, W], [H, W, 1], [H, W, 3] (RGB)
            or [H, W, 4] (RGBA), bool [H, W], uint16 [H, W]. An error in place of an image is raised.

    Raises:
        NotFoundError: there is no such file.
        ImageError: the file cannot be read, or the array or Pillow image cannot be encoded.
        InvalidArgumentError: `image` is none of these.
    """
    if isinstance(image, ImagekinError):
        raise image
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _file_bytes(Path(image))
    if isinstance(image, np.ndarray):
        return _encoded(_from_array(image))
    if _is_pillow(image):
        return _encoded(image)
    raise InvalidArgumentError(
        f"{type(image).__name__} is no image: pass a path, the file's bytes, a uint8 array or a Pillow image"
    )


def as_images(images: ImageLike | Iterable[ImageLike | ImagekinError]) -> Iterable[ImageLike | ImagekinError]:
    """Return `images` as a series, a single image as a series of one.

    An array counts as a single image when it is [H, W] or [H, W, 1|3|4], as a series of images otherwise.
    """
    if isinstance(images, np.ndarray):
        single = images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))
        return [images] if single else list(images)
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or _is_pillow(images):
        return [cast(ImageLike, images)]
    return cast(Iterable[ImageLike | ImagekinError], images)


def as_vectors(vectors: NDArray[np.generic] | Sequence[Any] | Iterable[Any]) -> Iterable[Any]:
    """Return `vectors` ([N, D], a series of [D], or a single [D]) as a series of vectors."""
    if isinstance(vectors, np.ndarray):
        return [vectors] if vectors.ndim == 1 else list(vectors)
    if isinstance(vectors, Sequence) and vectors and isinstance(vectors[0], int | float):
        return [vectors]
    return vectors


def _is_pillow(image: object) -> bool:
    # A Pillow image exists only once Pillow has been loaded, so there is no need to load it to find out.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _from_array(array: NDArray[np.generic]) -> "Image":
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    typed = array.dtype == np.uint8 or (array.ndim == 2 and array.dtype in (np.dtype(np.uint16), np.dtype(np.bool_)))
    if not shaped or not typed or 0 in array.shape:
        raise InvalidArgumentError(
            f"an array of {array.dtype} {list(array.shape)} is no image: pass uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _encoded(image: "Image") -> bytes:
    out = io.BytesIO()
    try:
        # Pillow keeps a file's orientation as a tag; without it a photo would arrive rotated.
        if image.mode in _PNG_MODES:
            image.save(out, "PNG", compress_level=1, exif=image.getexif().tobytes())
        else:
            image.save(out, "TIFF", exif=image.getexif().tobytes())
    except Exception as error:  # Pillow raises many kinds for images that it cannot read or write
        raise ImageError(f"the Pillow image ({image.mode}, {image.size}) cannot be encoded: {error}") from error
    return out.getvalue()
