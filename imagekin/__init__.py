"""Train image encoders, index images, and serve similarity search and classification.

    from imagekin import Client

Names are loaded on first use: the client needs gRPC, NumPy and protobuf, but neither FAISS nor ONNX Runtime nor torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagekin import errors, types
    from imagekin.client.async_client import AsyncClient
    from imagekin.client.calls import MessageLimits
    from imagekin.client.connection import Tls
    from imagekin.client.retries import RetryPolicy
    from imagekin.client.sync_client import Client
    from imagekin.errors import ImagekinError
    from imagekin.types import Examples, Item, ItemUpdate, Model, Neighbour, Prediction, StoredItem, UpsertResult

    __version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "Examples",
    "ImagekinError",
    "Item",
    "ItemUpdate",
    "MessageLimits",
    "Model",
    "Neighbour",
    "Prediction",
    "RetryPolicy",
    "StoredItem",
    "Tls",
    "UpsertResult",
    "__version__",
    "errors",
    "types",
]

# Public name → its module, and its name there (empty for the module itself).
_HOMES = {
    "AsyncClient": ("imagekin.client.async_client", "AsyncClient"),
    "Client": ("imagekin.client.sync_client", "Client"),
    "Examples": ("imagekin.types", "Examples"),
    "Item": ("imagekin.types", "Item"),
    "ItemUpdate": ("imagekin.types", "ItemUpdate"),
    "ImagekinError": ("imagekin.errors", "ImagekinError"),
    "MessageLimits": ("imagekin.client.calls", "MessageLimits"),
    "Model": ("imagekin.types", "Model"),
    "Neighbour": ("imagekin.types", "Neighbour"),
    "Prediction": ("imagekin.types", "Prediction"),
    "RetryPolicy": ("imagekin.client.retries", "RetryPolicy"),
    "StoredItem": ("imagekin.types", "StoredItem"),
    "Tls": ("imagekin.client.connection", "Tls"),
    "UpsertResult": ("imagekin.types", "UpsertResult"),
    "__version__": ("imagekin.version", "VERSION"),
    "errors": ("imagekin.errors", ""),
    "types": ("imagekin.types", ""),
}


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'imagekin' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    loaded = importlib.import_module(module)
    value: object = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted(set(globals()) | set(_HOMES))
