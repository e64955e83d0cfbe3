"""Thumbnails of a server: made of what is written over gRPC and HTTP, shown over both, by every client."""

import asyncio
import hashlib
import io

import pytest
from PIL import Image

from imagekin import AsyncClient, Client, Item
from imagekin.encoder.decoding.thumbnail import thumbnail
from imagekin.serving.settings import Settings
from tests.serving.http.calling import Caller, calling, over_grpc
from tests.serving.running import Running, png, running


@pytest.fixture(scope="module")
def shop(server: Running) -> str:
    """A collection that keeps thumbnails of 32 pixels."""
    over_grpc(server, "CreateCollection", {"name": "pictures", "thumbnail_size": 32})
    return "/v1/collections/pictures"


def test_pictures_written_over_http_and_grpc_have_thumbnails(call: Caller, server: Running, shop: str) -> None:
    assert call("GET", shop).json["collection"]["thumbnail_size"] == 32
    assert call("POST", f"{shop}/items?key=a%2F1", png(1, 200), "image/png").status == 200
    with Client(f"127.0.0.1:{server.server.port}") as client:
        client.upsert("pictures", [Item("b", image=png(2, 200)), Item("v", vector=[1.0] * 16)])
        assert client.collection("pictures").thumbnail_size == 32
        first, second, third, fourth = client.thumbnails("pictures", ["a/1", "b", "v", "nobody"])
    assert third is None
    assert fourth is None
    for found, data in ((first, png(1, 200)), (second, png(2, 200))):
        assert found is not None
        assert found.content_hash == hashlib.sha256(data).digest()
        assert found.jpeg == thumbnail(data, 32)
        with Image.open(io.BytesIO(found.jpeg)) as small:
            assert (small.format, small.size) == ("JPEG", (32, 32))

    async def again() -> object:
        async with AsyncClient(f"127.0.0.1:{server.server.port}") as client:
            return await client.thumbnails("pictures", ["a/1", "b"])

    assert asyncio.run(again()) == [first, second]


def test_a_thumbnail_is_a_file_that_is_sent_once(call: Caller, shop: str) -> None:
    call("POST", f"{shop}/items?key=once", png(5, 100), "image/png")
    answer = call("GET", f"{shop}/thumbnail?key=once")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.body == thumbnail(png(5, 100), 32)
    tag = {"if-none-match": answer.headers["etag"]}
    again = call("GET", f"{shop}/thumbnail?key=once", headers=tag)
    assert (again.status, again.body) == (304, b"")
    for given in (f"W/{answer.headers['etag']}", f'"other", {answer.headers["etag"]}', "*"):
        assert call("GET", f"{shop}/thumbnail?key=once", headers={"if-none-match": given}).status == 304
    assert call("GET", f"{shop}/thumbnail?key=once", headers={"if-none-match": '"other"'}).status == 200
    call("POST", f"{shop}/items?key=once", png(6, 100), "image/png")
    assert call("GET", f"{shop}/thumbnail?key=once", headers=tag).status == 200
    assert call("DELETE", f"{shop}/items?key=once").status == 200
    assert call("GET", f"{shop}/thumbnail?key=once").status == 404
    assert call("GET", "/v1/collections/nobody/thumbnail?key=a").status == 404
    assert call("GET", f"{shop}/thumbnail").status == 400
    assert call("GET", f"{shop}/thumbnail?key=a&key=b").status == 400


def test_a_thumbnail_beside_a_vector_is_made_anew(call: Caller, server: Running, shop: str) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010F] = "a secret"
    Image.new("RGB", (300, 100), "red").save(file, "JPEG", exif=exif)
    digest = hashlib.sha256(b"elsewhere").digest()
    with Client(f"127.0.0.1:{server.server.port}") as client:
        item = Item("w", vector=[1.0] * 16, content_hash=digest, thumbnail=file.getvalue())
        client.upsert("pictures", [item])
        (found,) = client.thumbnails("pictures", ["w"])
        assert found is not None
        assert b"secret" not in found.jpeg
        with Image.open(io.BytesIO(found.jpeg)) as small:
            assert small.size == (32, 11)
        for wrong in (b"no jpeg", png(1)):
            with pytest.raises(Exception, match="image") as refused:
                client.upsert("pictures", [Item("x", vector=[1.0] * 16, content_hash=digest, thumbnail=wrong)])
            assert getattr(refused.value, "field", "") == "items[0].thumbnail"


def test_a_replica_shows_what_the_writer_makes(call: Caller, server: Running, shop: str) -> None:
    folder = server.server.settings.data_dir
    settings = Settings(address="127.0.0.1:0", http_address="127.0.0.1:0", data_dir=folder, read_only=True)
    with running(settings) as replica, calling(replica.server.http_port) as other:
        assert call("POST", f"{shop}/items?key=r", png(8, 100), "image/png").status == 200
        shown = other("GET", f"{shop}/thumbnail?key=r")
        assert (shown.status, shown.body) == (200, thumbnail(png(8, 100), 32))
        assert shown.headers["etag"] == call("GET", f"{shop}/thumbnail?key=r").headers["etag"]
        assert call("DELETE", f"{shop}/items?key=r").status == 200
        assert other("GET", f"{shop}/thumbnail?key=r").status == 404
