"""LlamaIndex's retriever returns image nodes of the images that are most like one."""

import asyncio
from pathlib import Path

import pytest

from imagekin.errors import InvalidArgumentError
from tests.client.bridges.shop import filled_shop


def test_nodes_of_the_neighbours(tmp_path: Path) -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed: python -m tests.client.bridges")
    from llama_index.core.schema import QueryBundle

    from imagekin.client.bridges.llama_index import ImagekinRetriever

    photos = tmp_path / "photos"
    path = photos / "red" / "0001.png"
    with filled_shop(tmp_path) as client:
        retriever = ImagekinRetriever(client, "shop", k=2, by="data", text="caption", root=photos)
        found = retriever.retrieve(QueryBundle("like this", image_path=str(path)))
        assert found[0].node.id_ == "red/0001.png"
        assert found[0].score == pytest.approx(1)
        assert found[0].text == "number 9"
        assert found[1].metadata["label"] == "red"
        assert found[0].node.resolve_image() == str(path)
        by_path = ImagekinRetriever(client, "shop", k=1, min_similarity=0.5)
        assert asyncio.run(by_path.aretrieve(str(path)))[0].text == "red"
        with pytest.raises(InvalidArgumentError, match="no image"):
            retriever.retrieve(str(path))
