"""The map on the page: drawn points, what is under the pointer, a lasso and its grid, a picture in its place."""

import io
import json
import re
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, expect

from imagekin.index.local.catalog import Catalog
from imagekin.index.maps.settings import MapSettings
from tests.serving.http.calling import Caller, calling
from tests.serving.page.browser import Visit
from tests.serving.page.processes import Served
from tests.serving.page.test_browse import HOSTILE
from tests.serving.running import png

pytest.importorskip("umapers", reason="maps need umapers: pip install '.[map]'")

PICTURES, SIDE = 8, 65_534


@pytest.fixture
def mapped(server: Served) -> Iterator[Caller]:
    """A collection of 8 pictures and 60 vectors in three groups whose labels are hostile, with its map."""
    with calling(server.port) as call:
        call("POST", "/v1/collections", {"name": "mapped", "thumbnail_size": 32})
        for number in range(PICTURES):
            path = f"/v1/collections/mapped/items?key=p{number}&label=picture"
            assert call("POST", path, png(number), "image/png").status == 200
        random = np.random.default_rng(0)
        items = [
            {
                "key": f"{group}/{number} {HOSTILE[group]}",
                "vector": (np.eye(16)[group] * 4 + random.normal(0, 0.3, 16)).tolist(),
                "label": HOSTILE[group],
                "payload": {"group": group, "text": HOSTILE[group]},
            }
            for group in range(3)
            for number in range(20)
        ]
        assert call("POST", "/v1/collections/mapped/items", {"items": items}).status == 200
        with Catalog(server.data_dir, read_only=True) as catalog:
            catalog.open("mapped").make_map(MapSettings(), anew=False, advance=lambda count: None)
        yield call
        call("DELETE", "/v1/collections/mapped")


class Stage:
    """The map as a person sees it."""

    def __init__(self, visit: Visit, call: Caller) -> None:
        self.page = visit.page
        self.element = visit.page.locator(".stage")
        body = call("GET", "/v1/collections/mapped/map/points").body
        (length,) = struct.unpack_from("<I", body)
        about = json.loads(body[4 : 4 + length])
        self.positions = np.frombuffer(body, "<u2", 2 * about["count"], 4 + length).reshape(-1, 2).astype(float)
        numbers = list(range(about["count"]))
        asked = {"version": about["version"], "numbers": numbers}
        self.keys: list[str] = call("POST", "/v1/collections/mapped/map/keys", asked).json["keys"]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the whole map is on the screen."""
        box = self.element.bounding_box()
        assert box is not None
        scale = min(box["width"], box["height"]) * 0.97 / SIDE
        return box["x"] + box["width"] / 2 + (x - SIDE / 2) * scale, box["y"] + box["height"] / 2 - (
            y - SIDE / 2
        ) * scale

    def of(self, key: str) -> tuple[float, float]:
        """Return where an item is on the screen."""
        x, y = self.positions[self.keys.index(key)].tolist()
        return self.at(x, y)

    def clearest(self, kind: str) -> str:
        """Return the item of a kind, by the beginning of its key, that lies farthest from those of other kinds."""
        others = np.array([self.of(key) for key in self.keys if not key.startswith(kind)])
        own = [key for key in self.keys if key.startswith(kind)]
        return max(own, key=lambda key: float(np.linalg.norm(others - self.of(key), axis=1).min()))

    def drag(self, places: list[tuple[float, float]]) -> None:
        """Draw with the mouse."""
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def colours(self) -> dict[tuple[int, ...], int]:
        """Return how often each colour that differs clearly from the ground is on the canvas."""
        image = Image.open(io.BytesIO(self.page.locator(".points").screenshot())).convert("RGB")
        colours, often = np.unique(np.asarray(image).reshape(-1, 3).astype(int), axis=0, return_counts=True)
        clear = np.abs(colours - colours[often.argmax()]).sum(axis=1) > 90
        return dict(zip(map(tuple, colours[clear].tolist()), often[clear].tolist(), strict=True))


@pytest.fixture
def stage(visit: Visit, mapped: Caller) -> Stage:
    """The open map."""
    visit.open("#map?collection=mapped")
    visit.page.wait_for_selector(".stage:not(.busy)")
    expect(visit.page.locator(".results .said").first).to_have_text("68 items")
    return Stage(visit, mapped)


def test_points_are_drawn_in_the_colours_of_the_legend(stage: Stage) -> None:
    expect(stage.page.locator(".swatched")).to_have_count(4)
    first = stage.page.locator(".swatch").first
    for theme in ("light", "dark"):
        background = first.evaluate("one => getComputedStyle(one).backgroundColor")
        if theme == "dark":
            stage.page.keyboard.press("t")
            # The legend follows the theme as the points do.
            expect(first).not_to_have_css("background-color", background)
            stage.page.wait_for_timeout(200)
        swatches = stage.page.locator(".swatch").evaluate_all(
            "all => all.map(one => getComputedStyle(one).backgroundColor)"
        )
        shown = stage.colours()
        assert sum(shown.values()) > 500
        for colour in (tuple(map(int, swatch[4:-1].split(","))) for swatch in swatches):
            assert any(sum(abs(a - b) for a, b in zip(colour, one, strict=True)) < 70 for one in shown), colour
    before = sum(shown.values())
    stage.page.locator(".swatched", has_text="picture").click()
    stage.page.wait_for_timeout(200)
    assert sum(stage.colours().values()) < before / 2
    assert "only=" in stage.page.url


def test_the_pointer_shows_the_item_and_a_click_opens_it(stage: Stage, mapped: Caller) -> None:
    mine = stage.of(stage.clearest("p"))
    stage.page.mouse.move(*mine)
    card = stage.page.locator(".card-over")
    expect(card.locator(".label")).to_have_text("picture")
    key = card.locator(".key").inner_text()
    assert key.startswith("p")
    expect(card.locator(".picture.loaded img")).to_have_count(1)
    stage.page.mouse.click(*mine)
    expect(stage.page.locator("dialog.item h2")).to_have_text(key)
    stage.page.keyboard.press("Escape")
    stage.page.mouse.move(*stage.of(stage.clearest("0/")))
    expect(card.locator(".label")).to_have_text(HOSTILE[0])
    expect(card.locator("dd").first).to_have_text("0")


def test_a_lasso_fills_the_grid_and_the_address_keeps_all_of_it(stage: Stage, mapped: Caller) -> None:
    members = [one for one in stage.keys if one.startswith("1/")]
    places = [stage.of(one) for one in members]
    left, right = min(x for x, _ in places) - 6, max(x for x, _ in places) + 6
    top, bottom = min(y for _, y in places) - 6, max(y for _, y in places) + 6
    stage.page.get_by_role("button", name="Lasso", exact=True).click()
    stage.drag([(left, top), (right, top), (right, bottom), (left, bottom), (left, top + 5)])
    within = stage.page.locator(".said", has_text="within the lasso")
    expect(within).to_have_text("20 items within the lasso")
    # The grid has elements of what is near the window.
    expect(stage.page.locator(".tile:not(.waiting) .label").first).to_have_text(HOSTILE[1])
    assert {one[:2] for one in stage.page.locator(".tile .key").all_inner_texts()} == {"1/"}
    stage.page.locator(".stage").focus()
    stage.page.keyboard.press("+")
    stage.page.wait_for_url("**at=*")
    address = stage.page.url
    stage.page.reload()
    expect(within).to_have_text("20 items within the lasso")
    assert stage.page.url == address
    stage.page.get_by_role("button", name="Select all").click()
    expect(stage.page.locator(".selection strong")).to_have_text("20 selected")
    stage.page.keyboard.press("l")
    stage.page.locator("dialog.asks input").fill("ferret")
    stage.page.keyboard.press("Enter")
    expect(stage.page.locator(".swatched", has_text="ferret")).to_contain_text("20")
    # What was relabelled stays where it is, and so within the lasso.
    expect(within).to_have_text("20 items within the lasso")
    expect(stage.page.locator(".tile:not(.waiting) .label").first).to_have_text("ferret")
    assert set(stage.page.locator(".tile:not(.waiting) .label").all_inner_texts()) == {"ferret"}
    stage.page.get_by_role("button", name="Remove the lasso").click()
    expect(stage.page.locator(".tile")).to_have_count(0)


def test_a_value_of_zero_is_not_taken_for_none(stage: Stage, visit: Visit) -> None:
    # The pictures have no group.
    visit.open("#map?collection=mapped&by=payload.group")
    values = visit.page.locator(".swatched")
    expect(values).to_have_count(4)
    values.filter(has=visit.page.locator("bdi", has_text=re.compile("^0$"))).click()
    expect(visit.page.locator('.swatched[aria-pressed="true"]')).to_have_count(1)
    visit.page.locator(".stage").focus()
    visit.page.keyboard.press("s")
    expect(visit.page.locator(".said", has_text="within the lasso")).to_have_text("20 items within the lasso")


def test_a_collection_that_is_dropped_under_its_map_is_told(stage: Stage, mapped: Caller) -> None:
    stage.element.focus()
    stage.page.keyboard.press("s")
    expect(stage.page.locator(".said", has_text="within the lasso")).to_have_text("68 items within the lasso")
    assert mapped("DELETE", "/v1/collections/mapped").status == 200
    stage.page.get_by_role("button", name="Select all").click()
    expect(stage.page.locator(".said .error")).to_contain_text("no collection")


def test_keys_move_select_and_open(stage: Stage, visit: Visit) -> None:
    stage.element.focus()
    stage.page.keyboard.press("s")
    expect(stage.page.locator(".said", has_text="within the lasso")).to_have_text("68 items within the lasso")
    stage.page.keyboard.press("Escape")
    expect(stage.page.locator(".tile")).to_have_count(0)
    for _ in range(6):
        stage.page.keyboard.press("+")
    stage.page.keyboard.press("s")
    expect(stage.page.locator(".said", has_text="within the lasso")).not_to_have_text("68 items within the lasso")
    # An item lies a little off the middle: it is shown, and it is the one that opens.
    (x, y), (beside, _) = stage.positions[stage.keys.index(stage.clearest("p"))], stage.at(0, 0)
    x += 30 * 1_000 / (stage.at(1_000, 0)[0] - beside)
    visit.open(f"#map?collection=mapped&at={x:.0f},{y:.0f},71")
    visit.page.wait_for_selector(".stage:not(.busy)")
    stage.element.focus()
    stage.page.keyboard.press("+")
    expect(stage.page.locator(".card-over")).to_be_visible()
    key = stage.page.locator(".card-over .key").inner_text()
    stage.page.keyboard.press("Enter")
    expect(stage.page.locator("dialog.item h2")).to_have_text(key)


def test_a_dropped_picture_is_shown_in_its_place(stage: Stage, visit: Visit) -> None:
    picture: FilePayload = {"name": "p.png", "mimeType": "image/png", "buffer": png(3)}
    data = visit.page.evaluate_handle(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'p.png', { type: 'image/png' })); return data; }""",
        list(picture["buffer"]),
    )
    visit.page.dispatch_event("body", "dragenter", {"dataTransfer": data})
    visit.page.dispatch_event("body", "drop", {"dataTransfer": data})
    pin = visit.page.locator('.pin[style*="translate"]')
    expect(pin).to_have_count(1)
    box = pin.bounding_box()
    assert box is not None
    # The picture is that of an item, whose place it has.
    assert np.linalg.norm(np.array(stage.of("p3")) - np.array([box["x"], box["y"]])) < 2


def test_without_a_map_the_page_says_how_to_make_one(visit: Visit, shop: str, server: Served) -> None:
    visit.open("#map?collection=shop")
    expect(visit.page.locator(".notice h2")).to_have_text("No map yet")
    expect(visit.page.locator(".notice pre")).to_contain_text("imagekin map shop")
    with Catalog(server.data_dir, read_only=True) as catalog:
        catalog.open("shop").make_map(MapSettings(), anew=False, advance=lambda count: None)
    visit.page.get_by_role("button", name="Look again").click()
    expect(visit.page.locator(".results .said").first).to_have_text("6 items")


def test_without_webgl_the_points_are_drawn_all_the_same(browser: Browser, server: Served, mapped: Caller) -> None:
    from tests.serving.page.browser import visiting

    with visiting(browser, server.port, viewport={"width": 420, "height": 800}) as visit:
        visit.page.add_init_script(
            "const get = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext ="
            " function (kind, ...more) { return kind === 'webgl2' ? null : get.call(this, kind, ...more); };"
        )
        visit.open("#map?collection=mapped")
        visit.page.wait_for_selector(".stage:not(.busy)")
        expect(visit.page.locator(".results .said").first).to_have_text("68 items")
        assert sum(Stage(visit, mapped).colours().values()) > 300
        assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
