"""A retriever for LlamaIndex: nodes of the images that are most like an image. Needs `llama-index-core`."""

import os
from typing import Any

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle

from imagekin.client.bridges.queries import By, nearest, told
from imagekin.client.sync_client import Client


class ImagekinRetriever(BaseRetriever):
    """Return the neighbours of an image or an item as image nodes with their similarity as score, the nearest first.

    The image of a `QueryBundle` goes before its text. A node's text is what `text` names; its metadata are the payload,
    `key`, `label` and `similarity`.

    Args:
        client: a client of a server or, from `Client.local`, of a folder.
        collection: the collection's name.
        k: number of nodes.
        by: what a text is: `image` (a path, URL or `data:` URL), `data` (a `data:` URL alone, for queries of strangers
            or of a language model) or `key` (an item's key).
        filter: only items that match are found, for example `payload.price < 10`.
        min_similarity: leaves out items that are less similar, −1 to 1.
        text: member of the payload that becomes the text; else the label or, without one, the key.
        root: folder that the keys are paths in, for the nodes' image paths; empty leaves these out.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        *,
        k: int = 10,
        by: By = "image",
        filter: str | None = None,  # noqa: A002
        min_similarity: float | None = None,
        text: str = "",
        root: str | os.PathLike[str] = "",
    ) -> None:
        super().__init__()
        self._client = client
        self._settings: tuple[Any, ...] = (collection, k, filter, min_similarity)
        self._by = by
        self._text = text
        self._root = os.fspath(root)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        image = query_bundle.image_path
        found = nearest(self._client, image or query_bundle.query_str, "image" if image else self._by, *self._settings)
        nodes = []
        for one in found:
            text, metadata = told(one, self._text)
            path = os.path.join(self._root, one.key) if self._root else None
            node = ImageNode(id_=one.key, text=text, metadata=metadata, image_path=path)
            nodes.append(NodeWithScore(node=node, score=one.similarity))
        return nodes
