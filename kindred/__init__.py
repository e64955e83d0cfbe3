"""From a folder of images to a service that knows which images are alike and what they are.

    from kindred import Client

Names are loaded when they are first used: the client needs gRPC, numpy and protobuf, and nothing of FAISS, ONNX Runtime
or torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encoder import errors
    from encoder.errors import KindredError
    from kindred import types
    from kindred.aio import AsyncClient
    from kindred.channel import Tls
    from kindred.client import Client
    from kindred.types import Examples, Item, ItemUpdate, Model, Neighbour, Prediction, StoredItem, Upserted

    __version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "Examples",
    "Item",
    "ItemUpdate",
    "KindredError",
    "Model",
    "Neighbour",
    "Prediction",
    "StoredItem",
    "Tls",
    "Upserted",
    "__version__",
    "errors",
    "types",
]

# Public name → module that holds it, and the name there (empty: the module itself).
_HOMES = {
    "AsyncClient": ("kindred.aio", "AsyncClient"),
    "Client": ("kindred.client", "Client"),
    "Examples": ("kindred.types", "Examples"),
    "Item": ("kindred.types", "Item"),
    "ItemUpdate": ("kindred.types", "ItemUpdate"),
    "KindredError": ("encoder.errors", "KindredError"),
    "Model": ("kindred.types", "Model"),
    "Neighbour": ("kindred.types", "Neighbour"),
    "Prediction": ("kindred.types", "Prediction"),
    "StoredItem": ("kindred.types", "StoredItem"),
    "Tls": ("kindred.channel", "Tls"),
    "Upserted": ("kindred.types", "Upserted"),
    "__version__": ("kindred.version", "VERSION"),
    "errors": ("encoder.errors", ""),
    "types": ("kindred.types", ""),
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kindred' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    loaded = importlib.import_module(module)
    value: object = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted(set(globals()) | set(_HOMES))
