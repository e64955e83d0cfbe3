"""Browse on the page: every item, by value; select, label, delete, export, undo; hostile names run nothing."""

from pathlib import Path

from playwright.sync_api import Browser, Dialog, FilePayload, expect

from imagekin import Client
from tests.serving.http.calling import calling
from tests.serving.page.browser import Visit, visiting
from tests.serving.page.processes import Served
from tests.serving.running import png

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "\u202egpj.exe\u2066",
    "javascript:alert(1)",
    "w" * 1_000,
    "שלום עולם",
    "a/b?c#d%41&e=f",
    "{{7*7}}${7*7}",
)


def test_values_and_a_filter_narrow_what_is_shown(visit: Visit, shop: str) -> None:
    visit.open("#browse?collection=shop")
    assert visit.tiles() == ["k0", "k1", "k2", "k3", "k4", "k5"]
    visit.page.locator(".value", has_text="dog").click()
    expect(visit.page.locator(".said").first).to_have_text("2 items")
    assert visit.tiles() == ["k3", "k4"]
    visit.page.locator(".value", has_text="no label").click()
    expect(visit.page.locator(".said").first).to_have_text("3 items")
    visit.page.get_by_label("Filter").fill("payload.price < 4")
    expect(visit.page.locator(".said").first).to_have_text("1 item")
    visit.page.reload()
    assert visit.tiles() == ["k3"]


def test_three_are_relabelled_which_the_client_sees_and_undone(visit: Visit, shop: str, client: Client) -> None:
    visit.open("#browse?collection=shop")
    visit.tiles()
    for key in ("k0", "k3", "k5"):
        visit.page.locator(f"{visit.tile(key)} .choose").click()
    expect(visit.page.locator(".selection strong")).to_have_text("3 selected")
    visit.page.keyboard.press("l")
    visit.page.locator("dialog.asks input").fill("ferret")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".value", has_text="ferret")).to_contain_text("3")
    assert [item and item.label for item in client.get("shop", ["k0", "k1", "k3", "k5"])] == [
        "ferret",
        "cat",
        "ferret",
        "ferret",
    ]
    visit.page.locator(".note .undo").click()
    expect(visit.page.locator(".value", has_text="ferret")).to_have_count(0)
    assert [item and item.label for item in client.get("shop", ["k0", "k1", "k3", "k5"])] == ["cat", "cat", "dog", None]


def test_what_was_deleted_comes_back_whole(visit: Visit, shop: str, client: Client, server: Served) -> None:
    with calling(server.port) as call:
        exact = {"updates": [{"key": "k1", "payload": {"long": 12345678901234567890, "text": "é"}}]}
        assert call("PATCH", "/v1/collections/shop/items", exact).status == 200
        before = call("GET", "/v1/collections/shop/items?key=k1&with_vector=true").json["items"][0]
        visit.open("#browse?collection=shop")
        visit.tiles()
        visit.page.locator(f"{visit.tile('k1')} .choose").click()
        visit.page.keyboard.press("Delete")
        expect(visit.page.locator(".said").first).to_have_text("5 items")
        assert client.count("shop") == 5
        visit.page.keyboard.press("Control+z")
        expect(visit.page.locator(".said").first).to_have_text("6 items")
        # What has been taken back is not offered to be once more: that would take back another change.
        expect(visit.page.locator(".note", has_text="undone")).to_have_count(1)
        expect(visit.page.locator(".note .undo")).to_have_count(0)
        after = call("GET", "/v1/collections/shop/items?key=k1&with_vector=true").json["items"][0]
    assert {**after, "sequence": 0} == {**before, "sequence": 0}


def test_all_keys_are_exported(visit: Visit, shop: str, tmp_path: Path) -> None:
    visit.open("#browse?collection=shop")
    visit.tiles()
    visit.page.get_by_role("button", name="Select all").click()
    with visit.page.expect_download() as saved:
        visit.page.get_by_role("button", name="Export keys").click()
    saved.value.save_as(tmp_path / "keys.txt")
    assert (tmp_path / "keys.txt").read_text().splitlines() == ["k0", "k1", "k2", "k3", "k4", "k5"]


def test_many_items_have_few_elements(visit: Visit, server: Served) -> None:
    with calling(server.port) as call:
        call("POST", "/v1/collections", {"name": "many"})
        for start in range(0, 3_000, 250):
            items = [{"key": f"i{n:05}", "vector": [1.0, n / 3_000, *[0.0] * 14]} for n in range(start, start + 250)]
            assert call("POST", "/v1/collections/many/items", {"items": items}).status == 200
        try:
            visit.open("#browse?collection=many")
            visit.tiles()
            visit.page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
            visit.page.wait_for_selector(visit.tile("i02999"))
            assert visit.page.locator(".tile").count() < 150
        finally:
            call("DELETE", "/v1/collections/many")


def test_hostile_names_run_nothing_and_break_nothing(browser: Browser, server: Served) -> None:
    with calling(server.port) as call, visiting(browser, server.port) as visit:
        said: list[str] = []

        def spoken(dialog: Dialog) -> None:
            said.append(dialog.message)
            dialog.dismiss()

        visit.page.on("dialog", spoken)
        call("POST", "/v1/collections", {"name": "hostile"})
        items = [
            {
                "key": name,
                "vector": [1.0, n, *[0.0] * 14],
                "label": name,
                "payload": {name: name, "deep": {name: [name]}},
            }
            for n, name in enumerate(HOSTILE)
        ]
        assert call("POST", "/v1/collections/hostile/items", {"items": items}).status == 200
        try:
            for view in ("#browse?collection=hostile", "#browse?collection=hostile&by=payload.deep", "#status"):
                visit.open(view)
                visit.page.wait_for_selector(".tile .open, table")
            for name in HOSTILE:
                visit.open("#browse?collection=hostile")
                visit.page.wait_for_selector(".tile .open")
                tile = visit.page.locator(".tile").nth(HOSTILE.index(name))
                tile.locator(".open").click()
                expect(visit.page.locator("dialog.item h2 bdi")).to_have_text(name)
                visit.page.get_by_role("button", name="More like this").click()
                visit.page.wait_for_selector(".chip.like")
                assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            assert visit.page.locator("main img[src=x], main script").count() == 0
            assert said == []
        finally:
            call("DELETE", "/v1/collections/hostile")


def test_a_label_set_in_the_item_is_seen_behind_it(visit: Visit, shop: str, client: Client) -> None:
    visit.open("#search?collection=shop&like=k0")
    visit.tiles()
    visit.page.locator(f"{visit.tile('k4')} .open").click()
    visit.page.locator("dialog.item").get_by_label("Label").fill("wolf")
    visit.page.get_by_role("button", name="Set label").click()
    expect(visit.page.locator(f"{visit.tile('k4')} .label")).to_have_text("wolf")
    assert [item and item.label for item in client.get("shop", ["k4"])] == ["wolf"]


def test_a_new_picture_is_no_item(visit: Visit, shop: str, client: Client) -> None:
    visit.open()
    visit.page.set_input_files(
        "input[type=file]", files=FilePayload(name="a.png", mimeType="image/png", buffer=png(42))
    )
    visit.tiles()
    assert client.count("shop") == 6
