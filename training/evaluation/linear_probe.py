"""The linear probe: logistic regression on frozen, standardised embeddings, its penalty chosen on training images."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from imagekin.errors import InvalidArgumentError
from imagekin.progress import progress

Features = NDArray[np.floating]
Labels = NDArray[np.integer]

# Inverse strengths of the probe's L2 penalty to choose from, strongest penalty first.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT = 0.2
_PROBE_ITERATIONS = 2000
_LEAST_SPREAD = 0.3
"""Of the standard deviations by which features are divided, as a share of their root mean square.

A feature that is almost always 0 on the training images, as after a ReLU, has a tiny deviation. Divided by it, the
feature alone would decide a new image on which it is not 0. Chosen among 0, 0.01, 0.05, 0.1, 0.3 and 1, see
`bench/RESULTS.md`, "The linear probe".
"""


class LinearProbe:
    """A fitted multinomial logistic regression on standardised features.

    Attributes:
        classes: [C] int, ascending: what the columns of `logits` stand for.
    """

    def __init__(self, scaler: Any, model: Any) -> None:
        self._scaler = scaler
        self._model = model
        self.classes: NDArray[np.int64] = model.classes_

    @classmethod
    def fit(cls, x: Features, y: Labels, penalty: float, *, start: "LinearProbe | None" = None) -> Self:
        """Fit to features [N, D] and their classes [N], with C = `penalty`, from the weights of `start` if any."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # In float32, the embeddings' own type: double precision takes twice the time for the same accuracy.
        x = np.asarray(x, dtype=np.float32)
        if start is None:
            scaler, model = StandardScaler().fit(x), LogisticRegression(max_iter=_PROBE_ITERATIONS, warm_start=True)
            # Where no feature varies at all, the scale stays 1.
            least = _LEAST_SPREAD * np.sqrt(np.mean(scaler.var_)) or 1.0
            scaler.scale_ = np.maximum(np.sqrt(scaler.var_), least).astype(scaler.scale_.dtype)
        else:
            scaler, model = start._scaler, start._model
        # One thread: the products are so small that more threads wait for each other, up to ten times longer on a busy
        # machine.
        with threadpool_limits(1):
            return cls(scaler, model.set_params(C=penalty).fit(scaler.transform(x), y))

    def logits(self, x: Features) -> NDArray[np.float64]:
        """Return the unnormalised log-probabilities of the classes, float64 [M, C], of features [M, D]."""
        values = self._model.decision_function(self._scaler.transform(np.asarray(x, dtype=np.float32)))
        values = np.asarray(values, dtype=np.float64)
        # For two classes scikit-learn gives only the log-odds of the second.
        return values if values.ndim == 2 else np.stack((np.zeros_like(values), values), axis=1)

    def layer(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight [C, D] and bias [C] of the linear layer that maps unstandardised features to `logits`."""
        weight = np.asarray(self._model.coef_, dtype=np.float64)
        bias = np.asarray(self._model.intercept_, dtype=np.float64)
        if len(weight) == 1:
            weight, bias = (np.concatenate((np.zeros_like(part), part)) for part in (weight, bias))
        weight = weight / self._scaler.scale_
        return weight, bias - weight @ self._scaler.mean_

    def predict(self, x: Features) -> NDArray[np.int64]:
        """Return the classes [M] of features [M, D]."""
        predicted = self._model.predict(self._scaler.transform(np.asarray(x, dtype=np.float32)))
        return np.asarray(predicted, dtype=np.int64)

    def accuracy(self, x: Features, y: Labels) -> float:
        """Return the share of features [M, D] that are classified as `y` [M]."""
        return float(np.mean(self.predict(x) == np.asarray(y)))


def linear_accuracy(train_x: Features, train_y: Labels, test_x: Features, test_y: Labels, *, seed: int = 0) -> float:
    """Return only the accuracy of `linear_probe`."""
    return linear_probe(train_x, train_y, test_x, test_y, seed=seed)[0]


def linear_probe(
    train_x: Features, train_y: Labels, test_x: Features, test_y: Labels, *, seed: int = 0
) -> tuple[float, float]:
    """Fit a multinomial logistic regression on standardised features and score it.

    The L2 penalty is the strongest of those that do best on a stratified fifth of the *training* features; the probe is
    then fitted to all of them.

    Args:
        train_x: [N, D] float features.
        train_y: [N] int classes, at least two of them.
        test_x: [M, D] float features.
        test_y: [M] int classes.
        seed: of the split.

    Returns:
        The accuracy on the test features, 0 to 1, and the inverse strength C of the chosen penalty.

    Raises:
        InvalidArgumentError: the training features are all of one class.
    """
    predicted, penalty = probe_predict(train_x, train_y, test_x, seed=seed)
    return float(np.mean(predicted == np.asarray(test_y))), penalty


def probe_predict(
    train_x: Features, train_y: Labels, test_x: Features, *, seed: int = 0
) -> tuple[NDArray[np.int64], float]:
    """Return the classes [M] that `linear_probe` assigns to the test features, and its C; errors as there."""
    train_y = np.asarray(train_y)
    if len(np.unique(train_y)) < 2:
        raise InvalidArgumentError("a linear probe needs training images of at least two classes")
    penalty = choose_penalty(train_x, train_y, seed=seed)
    return LinearProbe.fit(train_x, train_y, penalty).predict(test_x), penalty


def choose_penalty(train_x: Features, train_y: Labels, *, seed: int = 0) -> float:
    """Return C of the strongest penalty among the best on a stratified fifth of the training features.

    When no class has two images, no choice is possible and the weakest penalty is returned.
    """
    fitted, held_out = stratified_split(train_y, HELD_OUT, seed)
    if not len(held_out):
        return PENALTIES[-1]
    probe: LinearProbe | None = None
    accuracies = []
    with progress("linear probe", len(PENALTIES)) as advance:
        for penalty in PENALTIES:
            # Start from the previous fit, whose penalty is stronger: fewer steps to the same optimum.
            probe = LinearProbe.fit(train_x[fitted], train_y[fitted], penalty, start=probe)
            accuracies.append(probe.accuracy(train_x[held_out], train_y[held_out]))
            advance(1)
    return PENALTIES[int(np.argmax(accuracies))]


def stratified_split(y: Labels, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split indices of `y` [N] in two, ascending, the second with about `share` of each class.

    A class of two or more is in both parts, a class of one only in the first.
    """
    random = np.random.default_rng(seed)
    second = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = random.permutation(np.flatnonzero(y == label))
        if len(members) > 1:
            second[members[: max(1, round(share * len(members)))]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)
