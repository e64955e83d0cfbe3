"""Thumbnails: there before their item, gone with the last one of their content, in snapshots, and never wrong."""

import hashlib
import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagekin.encoder.decoding.decode import load_pixels
from imagekin.encoder.decoding.thumbnail import load_with_thumbnail, thumbnail
from imagekin.encoder.metadata import Preprocess
from imagekin.errors import DataLossError, ImageError, InvalidArgumentError, UnavailableError
from imagekin.index.filters.parser import parse
from imagekin.index.local import snapshots, thumbnails
from imagekin.index.local.catalog import Catalog
from imagekin.index.local.collection import LocalCollection
from imagekin.index.local.thumbnails import FILE
from imagekin.index.types import VectorItem

DIM = 4


def item(key: str, content: str, picture: bytes | None = None) -> VectorItem:
    """Return an item whose content has a thumbnail that is easily found in a file."""
    digest = hashlib.sha256(content.encode()).digest()
    jpeg = picture if picture is not None else f"<thumbnail of {content}>".encode() * 20
    return VectorItem(key, np.ones(DIM, np.float32), content_hash=digest, thumbnail=jpeg)


def shown(collection: LocalCollection, *keys: str) -> list[bool]:
    return [one is not None for one in collection.thumbnails(keys)]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path)


@pytest.fixture
def shop(catalog: Catalog) -> LocalCollection:
    return catalog.create("shop", space="s", dim=DIM, thumbnail_size=160)


def stored(catalog: Catalog, folder: Path) -> bytes:
    """Return every byte of the thumbnails' files."""
    return b"".join(path.read_bytes() for path in (folder / "collections" / "shop").glob(f"{FILE}*"))


def test_an_item_has_the_thumbnail_of_its_content(catalog: Catalog, shop: LocalCollection, tmp_path: Path) -> None:
    shop.upsert([item("a", "one"), item("b", "two"), VectorItem("c", np.ones(DIM, np.float32))])
    first, second, third = shop.thumbnails(["a", "b", "c"])
    assert first is not None
    assert second is not None
    assert first.jpeg == item("a", "one").thumbnail
    assert second.content_hash == item("b", "two").content_hash
    assert third is None
    assert shown(shop, "nobody") == [False]
    assert shop.info().thumbnail_size == catalog.describe("shop").thumbnail_size == 160
    with Catalog(tmp_path, read_only=True) as replica:
        assert shown(replica.open("shop"), "a", "c") == [True, False]
    catalog.close()
    with Catalog(tmp_path) as again:
        assert shown(again.open("shop"), "a", "b") == [True, True]
        assert again.describe("shop").thumbnail_size == 160


def test_a_collection_without_thumbnails_keeps_none(catalog: Catalog, tmp_path: Path) -> None:
    plain = catalog.create("shop", space="s", dim=DIM)
    plain.upsert([item("a", "one")])
    assert shown(plain, "a") == [False]
    assert plain.info().thumbnail_size == 0
    assert not stored(catalog, tmp_path)
    plain.keep_thumbnails(64)
    plain.upsert([item("b", "two")])
    assert shown(plain, "a", "b") == [False, True]
    for size in (1, 5_000):
        with pytest.raises(InvalidArgumentError, match="thumbnails have 16 to"):
            catalog.create("other", space="s", dim=DIM, thumbnail_size=size)


def test_a_thumbnail_leaves_with_the_last_item_of_its_content(
    catalog: Catalog, shop: LocalCollection, tmp_path: Path
) -> None:
    shop.upsert([item("a", "shared"), item("b", "shared"), item("c", "lonely"), item("d", "filtered")])
    shop.delete(["a"])
    assert shown(shop, "b") == [True]
    shop.upsert([item("b", "other")])
    shop.delete(["c"])
    shop.delete_matching(parse('key = "d"'))
    # Back again without a picture: nothing of the old one is left.
    shop.upsert([item("e", content, b"") for content in ("shared",)])
    assert shown(shop, "e", "b") == [False, True]
    catalog.close()
    with Catalog(tmp_path) as again:
        again.compact("shop")
    left = stored(catalog, tmp_path)
    for content in ("shared", "lonely", "filtered"):
        assert f"<thumbnail of {content}>".encode() not in left
    assert b"<thumbnail of other>" in left


def test_writers_and_deleters_of_one_content_lose_no_thumbnail(shop: LocalCollection) -> None:
    def write(name: str) -> None:
        for number in range(40):
            shop.upsert([item(f"{name}{number}", "same")])
            if number < 39:
                shop.delete([f"{name}{number}"])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert shown(shop, "a39", "b39", "c39") == [True, True, True]
    shop.delete(["a39", "b39", "c39"])
    assert not list(shop._residence.latest().thumbnails.hashes())


def test_a_killed_writer_leaves_no_item_without_and_compaction_none_too_many(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.index.local.test_thumbnails import DIM, item
from imagekin.index.local.catalog import Catalog
with Catalog(Path(sys.argv[1])) as catalog:
    shop = catalog.create("shop", space="s", dim=DIM, thumbnail_size=160)
    number = 0
    while True:
        shop.upsert([item(f"k{number + n}", f"c{number + n}") for n in range(5)])
        shop.delete([f"k{number}"])
        number += 5
        print(number, flush=True)
"""
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=root, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(6):
            writer.stdout.readline()
        writer.kill()
    with Catalog(tmp_path) as catalog:
        with catalog.open("shop") as shop:
            keys = [one.key for one in shop.items()]
            assert keys
            assert all(shown(shop, *keys))
        catalog.compact("shop")
        with catalog.open("shop") as shop:
            hashes = {value for some in shop._residence.latest().thumbnails.hashes() for value in some}
            assert hashes == {one.content_hash for one in shop.items()}


def test_a_snapshot_holds_the_thumbnails(catalog: Catalog, shop: LocalCollection, tmp_path: Path) -> None:
    shop.upsert([item("a", "one")])
    taken = catalog.snapshot("shop")
    shop.delete(["a"])
    catalog.restore(taken.name, "back")
    assert catalog.open("back").thumbnails(["a"])[0] is not None
    assert catalog.describe("back").thumbnail_size == 160
    (tmp_path / "snapshots" / taken.name / FILE).write_bytes(b"damaged")
    with pytest.raises(DataLossError, match="SHA-256"):
        catalog.restore(taken.name, "damaged")


def test_a_snapshot_taken_while_items_go_holds_the_thumbnail_of_each_of_its_items(
    catalog: Catalog, shop: LocalCollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.upsert([item("a", "one"), item("b", "two")])
    going, reading = ["a", "b"], thumbnails.reading

    def meanwhile(folder: Path) -> object:
        shop.delete([going.pop()] if going else [])
        shop.upsert([item("c", "three")])
        return reading(folder)

    with monkeypatch.context() as patched:
        patched.setattr(thumbnails, "reading", meanwhile)
        patched.setattr(snapshots, "_TRIES", 3)
        with pytest.raises(UnavailableError, match="written too fast"):
            catalog.snapshot("shop")
        going = ["c"]
        patched.setattr(shop, "upsert", lambda _: None)
        taken = catalog.snapshot("shop")
    catalog.restore(taken.name, "back")
    back = catalog.open("back")
    assert all(shown(back, *[one.key for one in back.items()]))


def test_a_file_of_thumbnails_that_is_no_database_is_reported_as_lost_data(
    catalog: Catalog, shop: LocalCollection, tmp_path: Path
) -> None:
    shop.upsert([item("a", "one")])
    catalog.close()
    (tmp_path / "collections" / "shop" / FILE).write_bytes(b"not a database, " * 1_000)
    with Catalog(tmp_path) as again:
        (listed,) = again.list()
        assert "damaged" in listed.error
        with pytest.raises(DataLossError, match="collection 'shop'"):
            again.open("shop").thumbnails(["a"])


def test_a_damaged_thumbnail_is_never_shown(catalog: Catalog, shop: LocalCollection, tmp_path: Path) -> None:
    shop.upsert([item("a", "one")])
    catalog.close()
    path = tmp_path / "collections" / "shop" / FILE
    path.write_bytes(path.read_bytes().replace(b"<thumbnail of one>", b"<thumbnail of ONE>"))
    with Catalog(tmp_path) as again:
        assert shown(again.open("shop"), "a") == [False]


def photo(width: int = 1200, height: int = 800, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera's secret"
    image.save(file, kind, exif=exif, quality=90)
    return file.getvalue()


@pytest.mark.parametrize("side", [8, 64, 224])
@pytest.mark.parametrize("data", [photo(), photo(100, 50), photo(3000, 40), photo(kind="PNG")])
def test_the_model_sees_the_same_pixels_with_a_thumbnail_or_without(data: bytes, side: int) -> None:
    preprocess = Preprocess(height=side, width=side)
    pixels, jpeg = load_with_thumbnail(data, preprocess, 160)
    assert np.array_equal(pixels, load_pixels(data, preprocess))
    with Image.open(io.BytesIO(jpeg)) as small, Image.open(io.BytesIO(data)) as large:
        assert small.format == "JPEG"
        assert max(small.size) == min(160, max(large.size))
        assert not small.getexif()
        assert b"secret" not in jpeg
        # Upright: the file says that it lies on its side.
        assert (small.width > small.height) == (large.width < large.height)


@pytest.mark.parametrize("side", [330, 500, 900])
def test_a_thumbnail_averages_what_is_finer_than_its_pixels(side: int) -> None:
    file = io.BytesIO()
    stripes = np.zeros((side, side), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(file, "PNG")
    with Image.open(io.BytesIO(thumbnail(file.getvalue(), 160))) as small:
        pixels = np.asarray(small.convert("L"), np.float64)[4:-4, 4:-4]
    assert np.abs(pixels - 127.5).max() < 60
    assert abs(pixels.mean() - 127.5) < 2


def test_what_is_no_image_has_no_thumbnail() -> None:
    with pytest.raises(ImageError):
        thumbnail(b"no image", 160)
