"""Search on the page: drop, paste, choose or name an item; more and less; one item; the address keeps it."""

import base64
import re
from urllib.parse import quote

import pytest
from playwright.sync_api import FilePayload, expect

from imagekin import Client
from tests.serving.page.browser import Visit
from tests.serving.running import png

GIVE = """([kind, data, name, media]) => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: media }));
  const options = { clipboardData: transfer, dataTransfer: transfer, bubbles: true, cancelable: true };
  const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
  document.body.dispatchEvent(event);
}"""


def give(visit: Visit, kind: str, data: bytes, name: str = "mine.png", media: str = "image/png") -> None:
    """Drop or paste a file."""
    visit.page.wait_for_selector(".asking")
    visit.page.evaluate(GIVE, [kind, base64.b64encode(data).decode(), name, media])


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_shows_its_neighbours_and_its_class(visit: Visit, shop: str, kind: str) -> None:
    visit.open()
    give(visit, kind, png(1))
    assert visit.tiles()[0] == "k1"
    assert visit.page.locator(".tile .similarity span").first.inner_text() == "1.000" or len(visit.tiles()) == 6
    expect(visit.page.locator(".verdict")).to_have_text("cat")
    assert visit.page.locator(".votes li").count() == 2
    assert visit.page.locator(".chip img").evaluate("image => image.naturalWidth") == 16


def test_a_chosen_file_is_searched_and_embedded_once(visit: Visit, shop: str) -> None:
    embedded: list[str] = []
    visit.page.on("request", lambda request: embedded.append(request.url) if "/v1/embed" in request.url else None)
    visit.open()
    visit.page.set_input_files("input[type=file]", files=FilePayload(name="a.png", mimeType="image/png", buffer=png(3)))
    assert visit.tiles()[0] == "k3"
    visit.page.get_by_label("Filter").fill('label = "cat"')
    visit.page.wait_for_function("() => document.querySelector('.said').textContent.startsWith('3 neighbours')")
    assert set(visit.tiles()) == {"k0", "k1", "k2"}
    assert len(embedded) == 1


def test_what_is_not_similar_enough_is_hidden_and_unknown(visit: Visit, shop: str) -> None:
    visit.open("#search?collection=shop&least=0.99999")
    give(visit, "drop", png(77))
    expect(visit.page.locator(".said").first).to_contain_text("lower the threshold")
    expect(visit.page.locator(".verdict")).to_have_text("unknown")


def test_a_key_is_searched_and_kept_by_the_address(visit: Visit, shop: str, client: Client) -> None:
    expected = [one.key for one in client.search(collection="shop", keys=["k0"], k=3)[0]]
    visit.open()
    visit.page.get_by_label("Key of an item").fill("k0")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_label("Results", exact=True).first.wait_for()
    assert visit.tiles()[:3] == expected
    visit.page.reload()
    assert visit.tiles()[:3] == expected
    visit.page.locator(f"{visit.tile(expected[0])} .open").click()
    expect(visit.page.locator("dialog.item h2")).to_have_text(expected[0])
    visit.page.reload()
    expect(visit.page.locator("dialog.item h2")).to_have_text(expected[0])
    visit.page.keyboard.press("Escape")
    expect(visit.page.locator("dialog.item")).to_be_hidden()
    expect(visit.page).not_to_have_url(re.compile("item="))


def test_more_and_less_of_several_and_back(visit: Visit, shop: str) -> None:
    visit.open("#search?collection=shop&like=k0")
    first = visit.tiles()
    visit.page.locator(f"{visit.tile(first[1])} .open").focus()
    visit.page.keyboard.press("m")
    expect(visit.page.locator(".chip.like")).to_have_count(2)
    visit.tiles()
    visit.page.locator(f"{visit.tile(first[-1])} .open").focus()
    visit.page.keyboard.press("n")
    expect(visit.page.locator(".chip.unlike")).to_have_count(1)
    visit.tiles()
    visit.page.go_back()
    expect(visit.page.locator(".chip.unlike")).to_have_count(0)
    visit.page.go_back()
    expect(visit.page.locator(".chip")).to_have_count(1)
    assert visit.tiles() == first


def test_errors_say_what_to_do(visit: Visit, shop: str) -> None:
    visit.open("#search?collection=shop&like=" + quote("no such key"))
    expect(visit.page.locator(".said .error")).to_contain_text("no such key")
    visit.open("#search?collection=shop&like=k0&filter=" + quote("label ="))
    expect(visit.page.locator(".said .error")).to_contain_text("column")
    give(visit, "drop", b"no picture", "x.png")
    expect(visit.page.locator(".said .error")).not_to_contain_text("column")
    give(visit, "drop", b"text", "x.txt", "text/plain")
    expect(visit.page.locator(".note.failed")).to_contain_text("no picture")
    visit.open("#search?collection=shop&picture=9")
    expect(visit.page.locator(".prediction")).to_contain_text("Drop the picture again")


def test_the_keyboard_goes_through_the_grid(visit: Visit, shop: str) -> None:
    visit.open("#search?collection=shop&like=k0")
    keys = visit.tiles()
    visit.page.locator(f"{visit.tile(keys[0])} .open").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("x")
    expect(visit.page.locator(visit.tile(keys[1]))).to_have_class("tile selected")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("dialog.item h2")).to_have_text(keys[1])
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("2")
    expect(visit.page.locator(".tab[aria-current]")).to_have_text("Browse")
    visit.page.keyboard.press("?")
    expect(visit.page.locator("dialog.asks")).to_be_visible()


def test_without_a_collection_the_page_says_how_to_fill_one(visit: Visit) -> None:
    visit.open()
    expect(visit.page.locator(".notice").first).to_contain_text("imagekin index")
