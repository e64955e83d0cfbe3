"""The formats of image files: by which names files of each go, and which package reads it.

One table for everything that asks which files are images: the decoder, the sources, and the documentation.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec


@dataclass(frozen=True, slots=True)
class Format:
    """A format of image files.

    Attributes:
        name: Pillow's name of the format.
        suffixes: ends of file names, in lower case.
        extra: the extra of this package with what reads it; empty for what Pillow itself reads.
        module: the module of that extra, which registers the format with Pillow.
    """

    name: str
    suffixes: tuple[str, ...]
    extra: str = ""
    module: str = ""

    @property
    def is_available(self) -> bool:
        """True when what reads it is installed."""
        return not self.module or find_spec(self.module) is not None


ALL_FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif")),
    Format("PNG", (".png", ".apng")),
    Format("WEBP", (".webp",)),
    Format("GIF", (".gif",)),
    Format("BMP", (".bmp",)),
    Format("TIFF", (".tif", ".tiff")),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm")),
    Format("JPEG2000", (".jp2", ".j2k", ".jpx")),
    Format("AVIF", (".avif",)),
    Format("HEIF", (".heic", ".heif", ".hif"), "heic", "pillow_heif"),
    Format("JXL", (".jxl",), "jxl", "pillow_jxl"),
)
AVAILABLE_FORMATS = tuple(one for one in ALL_FORMATS if one.is_available)
FORMAT_NAMES = frozenset(one.name for one in AVAILABLE_FORMATS)
IMAGE_SUFFIXES = frozenset(suffix for one in AVAILABLE_FORMATS for suffix in one.suffixes)
"""Ends of the names of files that can be decoded; everything else in a folder or an archive is passed over."""
MISSING_EXTRAS = {suffix: one.extra for one in ALL_FORMATS for suffix in one.suffixes if suffix not in IMAGE_SUFFIXES}
"""The extra that would read the files whose names end so."""


def register_extras() -> None:
    """Make Pillow know the formats that installed extras read."""
    for one in AVAILABLE_FORMATS:
        if one.module:
            module = import_module(one.module)
            if one.name == "HEIF":  # the other one registers itself when it is imported
                module.register_heif_opener(thumbnails=False)
