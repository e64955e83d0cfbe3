"""DeepCluster: classify images by the cluster of their features at the start of the epoch (arXiv:1807.05520)."""

from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from imagekin.errors import FailedPreconditionError
from imagekin.training.loop.seeds import derived_seed
from imagekin.training.models.encoders import Backbone
from imagekin.training.objectives.base import DeviceData, Inputs, Objective, Setup, Targets, TrainingBatch
from imagekin.training.views.geometry import crop_resize
from imagekin.training.views.views import Views
from imagekin.version import install_command

_COMPONENTS = 256
"""Principal components that features are reduced to before clustering, as in the paper."""
_ITERATIONS = 20
_CONCENTRATION = 10.0
"""Of a new head's answers: cosines to the clusters' means are divided by 0.1."""
EMBED_BATCH = 512


class DeepCluster(Objective):
    """In each epoch: features → PCA, whitened, unit length → k-means → new labels and a new head.

    Batches are drawn so that every cluster is shown equally often; otherwise a large one would soon take over.

    Args:
        views: draws one view of each image.
        feature_dim: number of the encoder's features.
        image_count: images in the training set.
        clusters: k; the number of images when there are fewer.
        seed: of the clustering, the heads and the draws.
    """

    needs_labels: ClassVar[bool] = False

    labels: Tensor

    def __init__(self, views: Views, feature_dim: int, image_count: int, clusters: int, seed: int) -> None:
        super().__init__()
        self._clusters = min(clusters, image_count)
        self.register_buffer("labels", torch.zeros(image_count, dtype=torch.int64))
        self.head = nn.Linear(feature_dim, self._clusters)
        self._views = views
        self._seed = seed

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build it from a run's settings."""
        settings = setup.settings
        return cls(setup.views, setup.feature_dim, setup.image_count, settings.clusters, settings.seed)

    def begin_epoch(self, encoder: Backbone, data: DeviceData, epoch: int) -> None:
        """Cluster all images again and reset the head, since cluster numbers have no meaning across epochs."""
        features = self._embed(encoder, data)
        labels = cluster(whiten(features), self._clusters, derived_seed(self._seed, "clusters", epoch) % 2**31)
        self.labels.copy_(torch.from_numpy(labels))
        # Start from the clusters' means (as in DeepCluster-v2, arXiv:2006.09882): a random head would spend a short
        # epoch on finding the clusters, with gradients of little use to the encoder.
        weight, bias = head_of_means(features, labels, self._clusters)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def pick(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many rows, with every cluster equally likely."""
        weights = 1.0 / torch.bincount(self.labels, minlength=self._clusters).clamp_min(1)[self.labels]
        return torch.multinomial(weights.float(), len(rows), replacement=True, generator=generator)

    def make_inputs(self, batch: TrainingBatch) -> Inputs:
        """Return one view of each image, with its cluster."""
        return Inputs(self._views(batch.images, batch.generator), {"clusters": self.labels[batch.rows]})

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Return the mean cross-entropy over clusters."""
        return functional.cross_entropy(self.head(features), targets["clusters"])

    def _embed(self, encoder: Backbone, data: DeviceData) -> NDArray[np.float32]:
        """Return the features of all images without augmentation, float32 [N, D]."""
        training = encoder.training
        encoder.eval()
        parts = []
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(data), device=self.labels.device), EMBED_BATCH):
                images, _ = data.take(rows)
                whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=images.device).expand(len(images), 4)
                parts.append(encoder(self._views.normalise(crop_resize(images, whole, self._views.size).div_(255))))
        encoder.train(training)
        return np.ascontiguousarray(torch.cat(parts).float().cpu().numpy())


def whiten(features: NDArray[np.float32], components: int = _COMPONENTS) -> NDArray[np.float32]:
    """Reduce features [N, D] by PCA to at most `components`, each with deviation 1, then each row to unit length."""
    mean, matrix = _whitening(features, components)
    if not matrix.shape[1]:
        return np.ones((len(features), 1), dtype=np.float32)
    return np.asarray(_unit((features - mean) @ matrix), dtype=np.float32)


def _whitening(
    features: NDArray[np.float32], components: int = _COMPONENTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean [D] and the matrix [D, P] that whiten features [N, D]; P is 0 when all are equal."""
    mean = features.mean(0, dtype=np.float64)
    centred = features - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = np.argsort(values)[::-1][: min(components, len(centred) - 1)]
    kept = kept[values[kept] > 1e-8 * max(float(values.max()), 1e-12)]
    return mean, vectors[:, kept] / np.sqrt(values[kept])


def head_of_means(
    features: NDArray[np.float32], labels: NDArray[np.int64], clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [C, D] and bias [C] of the linear head that compares whitened features with cluster means.

    Its logits are the cosines with the means, times `_CONCENTRATION`, for a whitened feature of average length.

    Args:
        features: [N, D] float.
        labels: [N] int, the cluster of each, none empty.
        clusters: C.
    """
    mean, matrix = _whitening(features)
    projected = (features - mean) @ matrix
    sums = np.zeros((clusters, matrix.shape[1]))
    np.add.at(sums, labels, _unit(projected))
    lengths = np.linalg.norm(projected, axis=1).mean() if matrix.shape[1] else 1.0
    weight = _CONCENTRATION / lengths * _unit(sums) @ matrix.T
    return weight, -weight @ mean


def cluster(features: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int64]:
    """Cluster features [N, D] by k-means; returns int64 [N] from 0 to clusters − 1, no cluster empty.

    FAISS replaces an empty cluster by splitting a large one; one that is empty at the end gets an image of the largest.

    Raises:
        FailedPreconditionError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise FailedPreconditionError(f"deepcluster needs FAISS: {install_command('cpu,train')}") from error
    if len(features) <= clusters:
        return np.arange(len(features), dtype=np.int64)
    means = faiss.Kmeans(
        features.shape[1],
        clusters,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=10**6,
    )
    means.train(features)
    labels: NDArray[np.int64] = means.index.search(features, 1)[1].reshape(-1).astype(np.int64)
    for empty in np.setdiff1d(np.arange(clusters), labels):
        largest = np.bincount(labels, minlength=clusters).argmax()
        labels[np.flatnonzero(labels == largest)[-1]] = empty
    return labels


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float64)
