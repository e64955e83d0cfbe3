"""The page where its server is: restarted under it, and below a path of a proxy."""

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.serving.http.calling import calling
from tests.serving.page.browser import Visit, visiting
from tests.serving.page.processes import Served, serving
from tests.serving.running import png


def test_a_page_goes_on_when_its_server_is_back(browser: Browser, model_path: Path, tmp_path: Path) -> None:
    with serving(model_path, tmp_path) as first:
        with calling(first.port) as call:
            call("POST", "/v1/collections", {"name": "shop"})
            for key in ("one", "three"):
                assert call("POST", f"/v1/collections/shop/items?key={key}", png(len(key)), "image/png").status == 200
        with visiting(browser, first.port) as visit:
            visit.open("#browse?collection=shop")
            assert visit.tiles() == ["one", "three"]
            # Kept open while the first server ends and the second begins.
            restart(first.port, model_path, tmp_path, visit, first)


def restart(port: int, model: Path, data: Path, visit: Visit, first: Served) -> None:
    """Kill the first server, ask the page for something, and start another one in its place."""
    first.kill()
    visit.page.keyboard.press("1")
    visit.page.get_by_label("Key of an item").fill("one")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".away")).to_be_visible()
    with serving(model, data, port=port):
        assert visit.tiles() == ["three"]
        expect(visit.page.locator(".away")).to_be_hidden()


def test_the_page_works_below_a_path(browser: Browser, model_path: Path, tmp_path: Path) -> None:
    with serving(model_path, tmp_path, "--http-root-path", "/images") as server:
        with calling(server.port) as call:
            call("POST", "/v1/collections", {"name": "shop"})
            assert call("POST", "/v1/collections/shop/items?key=one", png(1), "image/png").status == 200
        with visiting(browser, server.port) as visit:
            asked: list[str] = []
            visit.page.on("request", lambda request: asked.append(request.url))
            visit.open("images/#browse?collection=shop")
            assert visit.tiles() == ["one"]
            assert all(url.startswith((f"{visit.base}images/", "about:", "blob:")) for url in asked)
