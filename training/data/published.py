"""Find published data sets that come with test images, by path or by name below a data root."""

from pathlib import Path

from imagekin.errors import NotFoundError
from imagekin.training.data.arrays import Arrays, Split
from imagekin.training.data.cifar import CIFAR10, CIFAR100, Cifar
from imagekin.training.data.mnist import FASHION_MNIST, MNIST, Mnist

PUBLISHED: dict[str, Cifar | Mnist] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
}


def published_name(path: Path) -> str | None:
    """Return the name of the published data set at `path`, as torchvision stores it; None when there is none.

    Of a folder that holds several the first in `PUBLISHED` counts.
    """
    return next((name for name, found in PUBLISHED.items() if found.is_at(path)), None)


def read_published(name: str, path: Path, split: Split) -> Arrays:
    """Read one split of a data set.

    Raises:
        NotFoundError: a file is missing.
        InvalidArgumentError: a file is damaged.
    """
    return PUBLISHED[name].read(path, split)


def resolve_data(spec: str, root: Path | None) -> str:
    """Return the path of the data set named `spec` below `root`, or `spec` itself when it is no name.

    Raises:
        NotFoundError: it is the name of a published data set that is not there. Nothing is ever downloaded.
    """
    if spec not in PUBLISHED or Path(spec).exists():
        return spec
    wanted = PUBLISHED[spec]
    if root is None:
        raise NotFoundError(
            f"name the folder that holds {wanted.name} as torchvision stores it with --data-root", field="data"
        )
    found = next((place for place in wanted.places(root) if wanted.is_at(place)), None)
    if found is None:
        raise NotFoundError(f"{root} holds no {wanted.name} as torchvision stores it ({wanted.folder})", field="data")
    return str(found)
