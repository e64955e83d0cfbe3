"""N-way K-shot accuracy: tell apart classes that the encoder was never trained on, given K examples of each.

An episode draws N classes, K examples and some queries of each. A query is answered by the class whose examples are
nearest to it by cosine; nothing is trained. Source of the protocol: Vinyals et al. 2016, arXiv:1606.04080, and Snell et
al. 2017, arXiv:1703.05175, whose prototypes are the method `mean`.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError

Method = Literal["mean", "nearest"]

EPISODES = 1000
QUERIES = 5


@dataclass(frozen=True, slots=True)
class FewShot:
    """Accuracy over many episodes, with its standard error.

    Attributes:
        accuracy: mean over episodes of the share of right answers, 0 to 1.
        standard_error: of that mean: the deviation of the episodes' accuracies over the root of their number.
        episodes: number of episodes.
    """

    accuracy: float
    standard_error: float
    episodes: int


def few_shot_accuracy(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    way: int,
    shot: int,
    queries: int = QUERIES,
    episodes: int = EPISODES,
    seed: int = 0,
    groups: NDArray[np.integer] | None = None,
    method: Method = "mean",
) -> FewShot:
    """Return the accuracy of `way`-way `shot`-shot classification, averaged over episodes drawn at random.

    Args:
        embeddings: [N, D] float, of any length; only directions count.
        labels: [N] int, their classes. A class with fewer than `shot` + `queries` images is never drawn.
        way: classes of an episode.
        shot: examples of each class.
        queries: query images of each class; none of them is an example.
        episodes: number of episodes.
        seed: of all draws.
        groups: [N] int: all classes of an episode are of one group, for example an alphabet. Each group that has
            enough classes is drawn equally often on average. None draws from all classes.
        method: `mean` compares with the mean of a class's examples, `nearest` with the nearest of them.

    Raises:
        InvalidArgumentError: a number is below 1 (`way` below 2), or no group has enough classes with enough images.
    """
    if way < 2 or min(shot, queries, episodes) < 1:
        raise InvalidArgumentError("few-shot needs at least 2 ways, 1 shot, 1 query and 1 episode", field="few_shot")
    labels = np.asarray(labels)
    pools = _pools(labels, np.zeros_like(labels) if groups is None else np.asarray(groups), shot + queries)
    usable = [pool for pool in pools if len(pool) >= way]
    if not usable:
        most = max((len(pool) for pool in pools), default=0)
        raise InvalidArgumentError(
            f"{way}-way {shot}-shot needs {way} classes{' of one group' if groups is not None else ''} with at least "
            f"{shot + queries} images ({shot} examples, {queries} queries); there are {most}",
            field="few_shot",
        )
    unit = _unit(np.asarray(embeddings, dtype=np.float32))
    random = np.random.default_rng(seed)
    accuracies = np.empty(episodes)
    for episode in range(episodes):
        pool = usable[random.integers(len(usable))]
        chosen = random.choice(len(pool), way, replace=False)
        rows = np.stack([random.choice(pool[number], shot + queries, replace=False) for number in chosen])
        accuracies[episode] = _answer(unit[rows[:, :shot]], unit[rows[:, shot:]], method)
    error = float(accuracies.std(ddof=1) / math.sqrt(episodes)) if episodes > 1 else 0.0
    return FewShot(float(accuracies.mean()), error, episodes)


def parse_way_shot(text: str) -> tuple[int, int]:
    """Return way and shot of a text like `20x1`; raises InvalidArgumentError for anything else."""
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if not match or int(match[1]) < 2 or int(match[2]) < 1:
        raise InvalidArgumentError(
            f"{text!r} is no few-shot task; write ways x shots, such as 20x1 or 5x5", field="few_shot"
        )
    return int(match[1]), int(match[2])


def _pools(labels: NDArray[np.integer], groups: NDArray[np.integer], least: int) -> list[list[NDArray[np.int64]]]:
    """Return, for each group, the rows of each class that has at least `least` images."""
    pools = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        members = members[np.argsort(labels[members], kind="stable")]
        starts = np.flatnonzero(np.diff(labels[members])) + 1
        pools.append([rows for rows in np.split(members, starts) if len(rows) >= least])
    return pools


def _answer(examples: NDArray[np.float32], asked: NDArray[np.float32], method: Method) -> float:
    """Return the share of queries [way, queries, D] nearest to their own class's examples [way, shot, D]."""
    way, queries, width = asked.shape
    flat = asked.reshape(way * queries, width)
    if method == "mean":
        similarities = flat @ _unit(examples.mean(1)).T
    else:
        similarities = (flat @ examples.reshape(-1, width).T).reshape(len(flat), way, -1).max(2)
    # A tie with another class counts as wrong: an encoder that maps all images to one point must not score.
    own = np.arange(way).repeat(queries)
    mine = similarities[np.arange(len(flat)), own].copy()
    similarities[np.arange(len(flat)), own] = -np.inf
    return float(np.mean(mine > similarities.max(1)))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
