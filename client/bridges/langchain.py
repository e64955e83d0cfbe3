"""A retriever for LangChain: documents of the images that are most like an image. Needs `langchain-core`."""

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from imagekin.client.bridges.queries import By, nearest, told
from imagekin.client.sync_client import Client


class ImagekinRetriever(BaseRetriever):
    """Return the neighbours of an image or an item as documents, the nearest first.

    A document's text is what `text` names; its metadata are the payload, `key`, `label` and `similarity`.

    Attributes:
        client: a client of a server or, from `Client.local`, of a folder.
        collection: the collection's name.
        k: number of documents.
        by: what a query is: `image` (a path, URL, `data:` URL or bytes), `data` (bytes or a `data:` URL alone, for
            queries of strangers or of a language model) or `key` (an item's key).
        filter: only items that match are found, for example `payload.price < 10`.
        min_similarity: leaves out items that are less similar, −1 to 1.
        text: member of the payload that becomes the text; else the label or, without one, the key.
    """

    client: Client
    collection: str
    k: int = 10
    by: By = "image"
    filter: str | None = None
    min_similarity: float | None = None
    text: str = ""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = nearest(self.client, query, self.by, self.collection, self.k, self.filter, self.min_similarity)
        texts = [(one.key, *told(one, self.text)) for one in found]
        return [Document(id=key, page_content=text, metadata=metadata) for key, text, metadata in texts]
