"""LangChain's retriever returns documents of the images that are most like one."""

import asyncio
from pathlib import Path

import pytest

from tests.client.bridges.shop import filled_shop


def test_documents_of_the_neighbours(tmp_path: Path) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed: python -m tests.client.bridges")
    from imagekin.client.bridges.langchain import ImagekinRetriever

    path = tmp_path / "photos" / "red" / "0001.png"
    with filled_shop(tmp_path) as client:
        retriever = ImagekinRetriever(client=client, collection="shop", k=3, text="caption", filter="payload.price > 8")
        found = retriever.invoke(str(path))
        assert [one.metadata["label"] for one in found] == ["red"] * 3
        assert found[0].id == "red/0001.png"
        assert found[0].page_content == "number 9"
        assert found[0].metadata["price"] == 9
        chain = retriever | (lambda documents: [one.id for one in documents])
        assert chain.invoke(path.read_bytes())[0] == "red/0001.png"
        assert asyncio.run(retriever.ainvoke(str(path))) == found
        by_key = ImagekinRetriever(client=client, collection="shop", by="key", k=1).invoke("red/0001.png")
        assert by_key[0].id != "red/0001.png"
        assert by_key[0].page_content == "red"
