"""Pictures of items on the page: thumbnails where there are any, labels where there are none; undo brings them back."""

from playwright.sync_api import expect

from tests.serving.http.calling import calling
from tests.serving.page.browser import Visit
from tests.serving.page.processes import Served
from tests.serving.running import png


def test_thumbnails_are_shown_and_come_back_with_their_item(visit: Visit, server: Served) -> None:
    with calling(server.port) as call:
        call("POST", "/v1/collections", {"name": "pictured", "thumbnail_size": 64})
        path = "/v1/collections/pictured/items"
        assert call("POST", f"{path}?key=seen&label=cat", png(1, 64), "image/png").status == 200
        assert call("POST", path, {"items": [{"key": "blind", "vector": [1.0] * 16, "label": "dog"}]}).status == 200
        try:
            visit.open("#browse?collection=pictured")
            assert visit.tiles() == ["seen", "blind"]
            visit.page.wait_for_selector(f"{visit.tile('seen')} .loaded")
            expect(visit.page.locator(f"{visit.tile('blind')} .initials")).to_have_text("do")
            assert visit.page.locator(f"{visit.tile('blind')} img").count() == 0
            visit.page.locator(f"{visit.tile('seen')} .choose").click()
            visit.page.keyboard.press("Delete")
            expect(visit.page.locator(".said").first).to_have_text("1 item")
            assert call("GET", "/v1/collections/pictured/thumbnail?key=seen").status == 404
            visit.page.keyboard.press("Control+z")
            expect(visit.page.locator(".said").first).to_have_text("2 items")
            assert call("GET", "/v1/collections/pictured/thumbnail?key=seen").headers["content-type"] == "image/jpeg"
        finally:
            call("DELETE", "/v1/collections/pictured")
