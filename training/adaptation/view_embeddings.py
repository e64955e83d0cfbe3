"""Embed images and random crops of them once, and keep the embeddings for the next adaptation.

The cache holds a folder for each pair of embedding space and images, with one file for each few hundred embeddings, so
that an adaptation that was interrupted goes on where it stopped. The crops of a piece depend on the seed and on the
piece alone.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imagekin import files
from imagekin.encoder.runtime.session import Encoder
from imagekin.progress import progress
from imagekin.training.data.identity import Identity
from imagekin.training.data.images import ImageSet
from imagekin.training.data.storage import cache_root
from imagekin.training.loop.seeds import generator
from imagekin.training.models.encoders import Normalisation
from imagekin.training.views.views import Views

PIECE = 256
_PRESET = "crops"


def embed_views(
    encoder: Encoder, images: ImageSet, count: int, *, seed: int = 0, cache_dir: Path | None = None
) -> NDArray[np.float32]:
    """Embed images as they are and `count` random crops of each.

    Args:
        encoder: the artifact.
        images: prepared as the artifact says.
        count: crops of each image; 0 is none.
        seed: of the crops.
        cache_dir: where embeddings are kept; None is `imagekin/embeddings` in the user's cache.

    Returns:
        Float32 [1 + count, N, D] of unit length, the images themselves first.
    """
    folder = (cache_dir or cache_root() / "embeddings") / _key(encoder, images)
    folder.mkdir(parents=True, exist_ok=True)
    # Pixels between 0 and 1, which become bytes again: an artifact normalises by itself.
    side = images.preprocess
    views = Views.named(_PRESET, max(side.height, side.width), Normalisation((0, 0, 0), (1, 1, 1)))
    pieces = math.ceil(len(images) / PIECE)
    rows = []
    with progress("embedding", (1 + count) * len(images)) as advance:
        for view in range(1 + count):
            parts = []
            for piece in range(pieces):
                pixels = images.pixels[piece * PIECE : (piece + 1) * PIECE]
                path = folder / (f"images-{piece}.npy" if view == 0 else f"seed{seed}-view{view}-{piece}.npy")
                part = _read(path, (len(pixels), encoder.metadata.dim))
                if part is None:
                    if view:
                        pixels = _crop(views, pixels, generator(seed, f"crops of view {view}", piece))
                    part = encoder.embed_pixels(pixels)
                    with files.replacing(path) as temporary, open(temporary, "wb") as file:
                        np.save(file, part, allow_pickle=False)
                parts.append(part)
                advance(len(part))
            rows.append(np.concatenate(parts))
    return np.stack(rows)


def _crop(views: Views, pixels: NDArray[np.uint8], draws: torch.Generator) -> NDArray[np.uint8]:
    """Return a random crop of each image, at the size of the images, uint8 [N, H, W, 3]."""
    parts = [_as_bytes(views(planes, draws)) for planes in _planes(pixels)]
    return np.concatenate(parts)


def _planes(pixels: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    for start in range(0, len(pixels), 64):
        yield torch.tensor(pixels[start : start + 64]).permute(0, 3, 1, 2)


def _as_bytes(views: torch.Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = views.mul(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return array


def _key(encoder: Encoder, images: ImageSet) -> str:
    """Return the name of the cache's folder for these images in this space."""
    metadata = encoder.metadata
    identity = [[key, digest] for key, digest, _ in Identity.of(images).images]
    said = [metadata.space, metadata.precision, repr(images.preprocess), _PRESET, identity]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Read a piece; None when it is not there, or damaged."""
    try:
        part = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = part.shape == shape and part.dtype == np.float32 and bool(np.isfinite(part).all())
    return part if fits else None
