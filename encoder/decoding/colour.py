"""Convert an image of any mode to plain 8-bit sRGB: bit depth, colour space, colour profile, transparency.

The conversion follows only from what the file declares. The exceptions are floating-point and 32-bit integer images:
their files do not state the value of white, so it is inferred from the pixels.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

Colour = tuple[int, int, int]

# Real profiles have less than 3 MB; the largest are those of printers.
_MAX_PROFILE_BYTES = 4 * 2**20
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_WHITE_IS_ZERO = 0
_SIGNED = 2


def to_rgb(image: Image.Image, background: Colour, rawmode: str = "") -> Image.Image:
    """Convert a loaded image to mode RGB in sRGB, with transparent parts over a background colour.

    Args:
        image: an image of any mode, already decoded.
        background: RGB, 0 to 255 each.
        rawmode: Pillow's name of the file's pixel format, by which a transparent colour is scaled like the pixels.

    Raises:
        ValueError: the mode cannot be converted.
    """
    profile = image.info.get("icc_profile")
    key = _transparent_key(image, rawmode)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image, alpha = _reduce_depth(image, key)
    else:
        if key is not None:
            image.info["transparency"] = key
        image, alpha = _split_alpha(image)
    rgb = _apply_profile(image, profile) if isinstance(profile, bytes) and profile else None
    if rgb is None:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    canvas = Image.new("RGB", rgb.size, background)
    canvas.paste(rgb, mask=alpha)
    return canvas


def _transparent_key(image: Image.Image, rawmode: str) -> int | tuple[int, ...] | None:
    """Return the colour that is transparent, on the scale of the decoded pixels; None when there is none.

    A PNG file gives it on the file's scale, and Pillow returns it unscaled.
    """
    key = image.info.get("transparency")
    if image.mode == "P" or not isinstance(key, int | tuple):
        return None
    if isinstance(key, tuple):
        return tuple(part >> 8 for part in key) if rawmode.startswith("RGB;16") else key
    factor = {"L;2": 85, "L;4": 17}.get(rawmode, 1)
    return key * factor


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an 8-bit image into a mode that colour profiles support, without transparency, and its alpha channel."""
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        if image.mode == "LA":
            return image.getchannel("L"), image.getchannel("A")
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if image.mode in ("RGB", "L", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _reduce_depth(image: Image.Image, key: object) -> tuple[Image.Image, Image.Image | None]:
    """Convert an image of one channel of more than 8 bits to mode L; also return its alpha channel, if it has one."""
    values = np.asarray(image)
    alpha = None
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if values.dtype.kind == "f":
        grey = _reduce_float(values)
    else:
        grey = _reduce_int(values, _bits(image, tags), signed=_first(tags.get(_SAMPLE_FORMAT)) == _SIGNED)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey), alpha


def _bits(image: Image.Image, tags: object) -> int:
    """Return the bits per sample in the file; 16 if it does not state them, as for PGM."""
    bits = _first(tags.get(_BITS_PER_SAMPLE)) if isinstance(tags, TiffImagePlugin.ImageFileDirectory_v2) else None
    return bits if isinstance(bits, int) else 16


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) and value else value


def _reduce_int(values: NDArray[np.integer], bits: int, *, signed: bool) -> NDArray[np.uint8]:
    """Keep the upper 8 of `bits` bits, as decoders do for 16-bit colour; negative values become 0."""
    if bits == 32:
        values = values if signed else values.view(np.uint32)
        # Most files with 32 bits have values of 16 bits, as Pillow itself writes them.
        if int(values.max(initial=0)) < 2**16:
            bits, signed = 16, False
    top: NDArray[np.uint8] = np.clip(values >> max(bits - signed - 8, 0), 0, 255).astype(np.uint8)
    return top


def _reduce_float(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scale by the smallest customary value of white that no value exceeds, 1, 255 or 65,535; clip larger values."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    peak = float(finite.max(initial=0.0))
    white = next((white for white in (1.0, 255.0) if peak <= white), 65535.0)
    scaled: NDArray[np.uint8] = np.clip(np.rint(finite * (255.0 / white)), 0, 255).astype(np.uint8)
    return scaled


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert an image to sRGB by its profile; None when the profile is sRGB, invalid or for another mode."""
    if image.mode not in ("RGB", "L", "CMYK") or len(profile) > _MAX_PROFILE_BYTES:
        return None
    transform = _transform(profile, image.mode)
    return None if transform is None else transform.apply(image)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB, which is cached and may be used by any thread."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
        probe = _probe(mode)
        changed = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    # Most profiles are a vendor's variant of sRGB, equal except for rounding: skipping the transform saves time.
    return None if np.abs(changed).max() <= 1 else transform


def _probe(mode: str) -> Image.Image:
    """Return an image with a coarse grid of all colours of a mode."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, 256 if bands == 1 else 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), axis=-1).reshape(1, -1, bands)
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())
