"""Review on the page: the same findings as the command's; what is proposed is accepted, and undone."""

import numpy as np
from playwright.sync_api import expect

from imagekin import Client, Item
from imagekin.cli.review.findings import Gatherer
from tests.serving.page.browser import Visit
from tests.serving.page.processes import Served


def fill(client: Client) -> dict[str, list[str]]:
    """Fill a collection with three noisy classes, some labels wrong, some twins; return what the command finds."""
    random = np.random.default_rng(3)
    items = []
    for number in range(90):
        vector = random.normal(0, 0.18, 16)
        vector[number % 3] += 1
        label = "abc"[(number + (number % 10 == 0)) % 3]
        items.append(Item(f"k{number:02}", vector=vector.tolist(), label=label if number % 7 else None))
    items += [Item(f"twin{number}", vector=items[number].vector, label="a") for number in (1, 2, 3)]
    items.append(Item("far", vector=[-1.0] * 16))
    client.create_collection("doubtful", space="test", dim=16)
    client.upsert("doubtful", items)
    stored = list(client.scroll("doubtful"))
    gatherer = Gatherer(0.97)
    for item, near in zip(
        stored, client.search(collection="doubtful", keys=[one.key for one in stored], k=20), strict=True
    ):
        gatherer.add(item.key, item.label or "", near)
    found = {"labels": gatherer.labels(), "duplicates": gatherer.near_duplicates(), "outliers": gatherer.outliers()}
    return {name: [one.key for one in findings] for name, findings in found.items()}


def test_the_page_finds_what_the_command_finds_and_takes_its_proposals(
    visit: Visit, server: Served, client: Client
) -> None:
    expected = fill(client)
    assert all(expected.values())
    try:
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
    finally:
        client.drop_collection("doubtful")
