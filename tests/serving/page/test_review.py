"""Review on the page: the same findings as the command's; what is proposed is accepted, and undone."""

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from imagekin import Client, Item
from imagekin.cli.review.driver import run
from imagekin.index.review.review import Options
from tests.serving.page.browser import Visit
from tests.serving.page.processes import Served


def photo(seed: int, quality: int = 90) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


def pictured(key: str, vector: Any, label: str | None, jpeg: bytes) -> Item:
    digest = hashlib.sha256(jpeg).digest()
    return Item(key, vector=vector, label=label, content_hash=digest, thumbnail=jpeg)


def fill(client: Client) -> dict[str, list[str]]:
    """Fill a collection with three noisy classes, some labels wrong, some twins; return what the command finds.

    Two items of one vector have other pictures, and are no twins.
    """
    random = np.random.default_rng(3)
    items = []
    for number in range(90):
        vector = random.normal(0, 0.18, 16)
        vector[number % 3] += 1
        label = "abc"[(number + (number % 10 == 0)) % 3]
        items.append(pictured(f"k{number:02}", vector, label if number % 7 else None, photo(number)))
    for number in (1, 2, 3, 4):
        copy = photo(number, 30) if number < 4 else photo(1_000)
        items.append(pictured(f"twin{number}", items[number].vector, "a", copy))
    items.append(Item("far", vector=[-1.0] * 16))
    client.create_collection("doubtful", space="test", dim=16, thumbnail_size=160)
    client.upsert("doubtful", items)
    found = run(client, "doubtful", Options())
    assert {one.key for one in found.duplicates} == {"k01", "k02", "k03", "twin1", "twin2", "twin3"}
    lists = {"labels": found.labels, "duplicates": found.duplicates, "outliers": found.outliers, "next": found.next}
    return {name: [one.key for one in findings] for name, findings in lists.items()}


def test_the_page_finds_what_the_command_finds_and_takes_its_proposals(
    visit: Visit, server: Served, client: Client
) -> None:
    try:
        expected = fill(client)
        assert all(expected.values())
        for name, keys in expected.items():
            visit.open(f"#review?collection=doubtful&list={name}")
            assert visit.tiles() == keys
        visit.page.get_by_role("button", name="Likely wrong labels").click()
        chosen = expected["labels"][:2]
        before = [item and item.label for item in client.get("doubtful", chosen)]
        proposed = []
        for key in chosen:
            visit.page.locator(f"{visit.tile(key)} .choose").click()
            proposed.append(visit.page.locator(f"{visit.tile(key)} .note-line").inner_text().removeprefix("→ "))
        visit.page.get_by_role("button", name="Accept proposed").click()
        expect(visit.page.locator(visit.tile(chosen[0]))).to_have_count(0)
        assert [item and item.label for item in client.get("doubtful", chosen)] == proposed
        visit.page.locator(".note .undo").click()
        visit.page.wait_for_selector(visit.tile(chosen[0]))
        assert [item and item.label for item in client.get("doubtful", chosen)] == before
        visit.page.get_by_role("button", name="Near-duplicates").click()
        visit.page.get_by_role("button", name="Select all but the first").click()
        expect(visit.page.locator(".selection strong")).to_contain_text("selected")
        assert visit.page.locator(".tile.selected").count() < len(expected["duplicates"])
        visit.page.get_by_role("button", name="Label next").click()
        first = expected["next"][0]
        visit.page.locator(f"{visit.tile(first)} .choose").click()
        visit.page.keyboard.press("l")
        visit.page.locator("dialog.asks input").fill("new")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator(visit.tile(first))).to_have_count(0)
        assert [item and item.label for item in client.get("doubtful", [first])] == ["new"]
    finally:
        client.drop_collection("doubtful")
