"""Load the data of a run, check the labels, and place the images where training takes its batches from."""

import logging
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagekin.errors import InvalidArgumentError
from imagekin.training.data.arrays import Split
from imagekin.training.data.images import ImageSet, has_split, load_images
from imagekin.training.data.overlap import without_overlap
from imagekin.training.data.storage import Storage
from imagekin.training.evaluation.evaluate import align_labels
from imagekin.training.models.encoders import Normalisation
from imagekin.training.objectives.base import DeviceData
from imagekin.training.settings import TrainSettings

logger = logging.getLogger("imagekin.training")


def measure_normalisation(images: ImageSet) -> Normalisation:
    """Return the mean and standard deviation of each channel over all pixels."""
    total, squares = np.zeros(3), np.zeros(3)
    for start in range(0, len(images), 1024):
        part = images.pixels[start : start + 1024].reshape(-1, 3) / 255.0
        total += part.sum(0)
        squares += (part**2).sum(0)
    count = images.pixels.size / 3
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    red, green, blue = (float(value) for value in mean)
    std_red, std_green, std_blue = (float(value) for value in std)
    return Normalisation((red, green, blue), (std_red, std_green, std_blue))


def load_data(settings: TrainSettings) -> tuple[ImageSet, ImageSet | None]:
    """Load the training images, and the test images if any, so that errors in test data show before the training.

    Raises:
        InvalidArgumentError: one of them cannot be used, or all test images are training images.
    """
    rule = settings.label_from
    has_own = has_split(settings.data, rule)
    split: Split = "train" if has_own else "all"
    storage, prepared = _storage_of(settings), settings.training_preprocess()
    train = load_images(
        settings.data, split=split, limit=settings.limit, preprocess=prepared, storage=storage, label_from=rule
    )
    spec = settings.test or (settings.data if has_own else "")
    if not spec:
        return train, None
    split = "test" if has_split(spec, rule) else "all"
    test = load_images(spec, split=split, preprocess=settings.preprocess(), storage=storage, label_from=rule)
    if train.class_names:
        if len(train.class_names) == 1:
            raise InvalidArgumentError(
                f"all images of {settings.data} are of one class ({train.class_names[0]}), so that no score can be made"
                " of the test images; train without labels and score (--label-from none)",
                field="data",
            )
        align_labels(train, test)
        # Only to say so before the work: the scores are made by whoever exports, with the images as they are served.
        without_overlap(train, test, near=settings.near, allowed=settings.allow_overlap)
    return train, test


def check_labels(train: ImageSet, settings: TrainSettings, *, needed: bool) -> None:
    """Raise an error when the objective cannot learn from the labels, and warn about labels that are doubtful."""
    if not needed:
        return
    if not train.class_names:
        raise InvalidArgumentError(
            f"{settings.objective} learns from labels, and {settings.data} has none: put the images into one folder "
            "for each class, or use --objective simclr",
            field="data",
        )
    if len(train.class_names) == 1:
        raise InvalidArgumentError(
            f"all images of {settings.data} are of one class ({train.class_names[0]}); {settings.objective} needs two",
            field="data",
        )
    sizes = Counter(train.labels.tolist())
    lonely = [train.class_names[label] for label in sorted(sizes) if sizes[label] == 1]
    if lonely:
        shown = ", ".join(lonely[:3]) + " …" * (len(lonely) > 3)
        logger.warning("%d of %d classes have a single image (%s)", len(lonely), len(sizes), shown)


def check_batches(train: ImageSet, settings: TrainSettings) -> None:
    """Refuse a run that could not learn: batches of one image, no positives, or no negatives.

    Raises:
        InvalidArgumentError: it could not; the message says what to change.
    """
    if not settings.epochs:
        return
    copies = (4 if settings.rotations_as_classes else 1) * (2 if settings.mirrors_as_classes else 1)
    if min(settings.batch_size, len(train) * copies) < 2:
        only = "--batch-size 1 makes" if settings.batch_size < 2 else f"{settings.data} holds one image, which makes"
        raise InvalidArgumentError(f"{only} batches of one image, from which nothing can be learnt", field="batch_size")
    if settings.sampler == "pk" and settings.batch_size < 2 * settings.images_per_class:
        raise InvalidArgumentError(
            f"--batch-size {settings.batch_size} of {settings.images_per_class} images a class holds a single class, "
            "and so nothing to tell apart: raise it, or lower --images-per-class",
            field="batch_size",
        )
    if settings.num_views > 1:
        return
    if settings.objective == "simclr":
        raise InvalidArgumentError("simclr compares views of one image: give --num-views 2", field="num_views")
    alone = settings.sampler != "pk" and max(Counter(train.labels.tolist()).values()) < 2
    if alone and settings.objective in ("supcon", "sincere", "triplet", "n-pairs"):
        raise InvalidArgumentError(
            f"with one view of each image and no two images of a class, {settings.objective} has nothing to bring "
            "together: give --num-views 2 or more images",
            field="num_views",
        )


def device_data(settings: TrainSettings, train: ImageSet, device: torch.device) -> DeviceData:
    """Put the training set on the device, or leave it in host memory, from where batches are copied."""
    rotations, mirrors = 4 if settings.rotations_as_classes else 1, 2 if settings.mirrors_as_classes else 1
    labels = torch.from_numpy(train.labels).to(device)
    images = _planes(train.pixels).to(device) if _is_moved(settings, train, device) else _mapped(train.pixels)
    return DeviceData(images, labels, len(train.class_names), rotations, mirrors)


def _storage_of(settings: TrainSettings) -> Storage:
    """Return the storage of decoded images that the settings ask for."""
    return Storage(settings.data_on, settings.cache_dir)


def _is_moved(settings: TrainSettings, train: ImageSet, device: torch.device) -> bool:
    if settings.data_on != "auto":
        return settings.data_on == "device"
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return train.pixels.nbytes <= free // 2
    return not isinstance(train.pixels, np.memmap)


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    """Return the pixels as uint8 [N, 3, H, W], stored as [N, H, 3, W], the order that crops read them in."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 1, 3, 2))).permute(0, 2, 1, 3)


def _mapped(pixels: NDArray[np.uint8]) -> Tensor:
    """Return the same view of pixels without copying them."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
