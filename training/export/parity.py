"""Check every export: the file must agree with the trained encoder on real images.

Two measures: the largest difference of the embeddings, and the share of nearest-neighbour answers that agree. A file
that fails either one is not written.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from imagekin.errors import FailedPreconditionError
from imagekin.progress import progress
from imagekin.training.evaluation.evaluate import Labels, nearest
from imagekin.training.models.encoders import Normalisation, normalise

MAX_DIFFERENCE = 1e-4
MIN_AGREEMENT = 0.999
# Neighbours whose cosines differ by less are equally near within the precision of float32.
_TIE = 1e-5
EPSILON = 1e-12
_REFERENCE_BATCH = 64


def check_parity(reference: NDArray[np.float32], candidate: NDArray[np.float32], labels: Labels) -> tuple[float, float]:
    """Compare embeddings of the same images, [N, D] each.

    Returns:
        The largest difference of a component, and the agreement of the nearest-neighbour answers.

    Raises:
        FailedPreconditionError: the difference is above 1e-4 or the agreement below 99.9 %.
    """
    difference = float(np.abs(reference - candidate).max())
    if not difference <= MAX_DIFFERENCE:  # in this form NaN fails, too
        raise FailedPreconditionError(
            f"the exported model is not the trained encoder: embeddings differ by {difference:.2g}, "
            f"allowed is {MAX_DIFFERENCE:.0e}; nothing was written"
        )
    agreement = knn_agreement(reference, candidate, labels)
    if not agreement >= MIN_AGREEMENT:
        raise FailedPreconditionError(
            f"the exported model is not the trained encoder: {agreement:.2%} of its nearest-neighbour answers agree, "
            f"needed are {MIN_AGREEMENT:.1%}; nothing was written"
        )
    return difference, agreement


def check_logits(head: nn.Linear, embeddings: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
    """Compare logits [N, C] with those that `head` gives for the reference's embeddings [N, D].

    Raises:
        FailedPreconditionError: they differ by more than 1e-4 of the largest logit (or of 1, if that is larger).
    """
    with torch.inference_mode():
        reference = head(torch.from_numpy(embeddings)).numpy()
    difference = float(np.abs(reference - logits).max() / max(1.0, float(np.abs(reference).max())))
    if not difference <= MAX_DIFFERENCE:
        raise FailedPreconditionError(
            f"the exported model is not the trained encoder: logits differ by {difference:.2g} of the largest, "
            f"allowed is {MAX_DIFFERENCE:.0e}; nothing was written"
        )


def knn_agreement(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    labels: Labels,
    *,
    tie: float = _TIE,
    gallery: NDArray[np.float32] | None = None,
) -> float:
    """Return the share of images whose nearest other image has the same label in both sets of embeddings, 0 to 1.

    A candidate's neighbour also agrees if the reference has it equally near, within `tie` of cosine: the order of equal
    neighbours is no property of the encoder.

    Args:
        reference: [N, D] float32 of unit length, N >= 2.
        candidate: [N, D] float32 of unit length, of the same images.
        labels: [N] int.
        tie: cosine difference that counts as equal.
        gallery: [N, D] embeddings that the candidate's queries are searched in; None is the candidate's own.
    """
    ours, theirs = torch.from_numpy(reference), torch.from_numpy(candidate)
    asked = theirs if gallery is None else torch.from_numpy(gallery)
    answers = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    agreed = 0
    for start in range(0, len(ours), 1024):
        rows = torch.arange(start, min(start + 1024, len(ours)))
        cosines = _others(ours, rows, ours)
        _, right = nearest(cosines, 1)
        _, given = nearest(_others(theirs, rows, asked), 1)
        near = cosines.gather(1, given) >= cosines.gather(1, right) - tie
        agreed += int(((answers[right] == answers[given]) | near).sum())
    return agreed / len(ours)


def torch_embeddings(
    encoder: nn.Module, normalisation: Normalisation, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Embed `pixels` [N, H, W, 3] as training does, float32 [N, D]: the reference for an exported file.

    It shares no code with `ServedEncoder`, so that a mistake there shows as a difference.
    """
    parts = []
    with torch.inference_mode(), progress("checking the export", len(pixels)) as advance:
        for start in range(0, len(pixels), _REFERENCE_BATCH):
            batch = torch.tensor(pixels[start : start + _REFERENCE_BATCH]).permute(0, 3, 1, 2)
            features = encoder(normalise(batch, normalisation))
            parts.append(functional.normalize(features.float(), dim=1, eps=EPSILON))
            advance(len(batch))
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def _others(queries: Tensor, rows: Tensor, gallery: Tensor) -> Tensor:
    """Return the cosines [Q, N] of some rows to the whole gallery, each row's own set to -inf."""
    cosines = queries[rows] @ gallery.T
    cosines[torch.arange(len(rows)), rows] = -torch.inf
    return cosines
