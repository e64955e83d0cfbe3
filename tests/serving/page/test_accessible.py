"""Accessibility: axe finds no violation of WCAG 2.2 AA in any view, dialog or theme."""

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser

from imagekin.index.local.catalog import Catalog
from imagekin.index.maps.settings import MapSettings
from tests.serving.page.browser import Visit, visiting
from tests.serving.page.processes import Served

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def violations(visit: Visit) -> list[str]:
    """Return axe's objections to the page as it is, each with its elements."""
    visit.page.wait_for_timeout(250)  # colours change over a moment, and what is half-way has too little contrast
    found = Axe().run(visit.page, options={"runOnly": RULES, "resultTypes": ["violations"]})
    return [f"{one['id']}: {[node['html'][:200] for node in one['nodes']]}" for one in found.response["violations"]]


@pytest.mark.parametrize(("scheme", "width"), [("light", 400), ("dark", 1280)])
def test_no_view_or_dialog_violates_the_guidelines(
    browser: Browser, server: Served, shop: str, scheme: str, width: int
) -> None:
    with Catalog(server.data_dir, read_only=True) as catalog:
        catalog.open("shop").make_map(MapSettings(), anew=False, advance=lambda count: None)
    size = {"width": width, "height": 800}
    with visiting(browser, server.port, viewport=size, color_scheme=scheme) as visit:
        visit.open()
        views = visit.page.locator(".tab").evaluate_all("all => all.map(one => one.dataset.view)")
        assert len(views) >= 4
        found = {}
        more = [
            "search?like=k0",
            "search?like=k0&item=k1",
            "review?list=duplicates",
            "review?list=next",
            "browse?q=nothing",
            "map?lasso=0,0,65534,0,65534,65534,0,65534",
        ]
        for view in [*views, *more]:
            visit.open(f"#{view}")
            visit.page.wait_for_selector(".drop:visible, .tile .open, table, .lists .number, canvas, .notice")
            found[view] = violations(visit)
        visit.open("#browse")
        visit.page.locator(f"{visit.tile('k1')} .choose").click()
        found["selection"] = violations(visit)
        visit.page.keyboard.press("l")
        found["label"] = violations(visit)
        visit.page.keyboard.press("Escape")
        visit.page.keyboard.press("?")
        found["keys"] = violations(visit)
        visit.page.keyboard.press("Escape")
        visit.page.keyboard.press("Delete")
        visit.page.wait_for_selector(".note .undo")
        found["note"] = violations(visit)
        assert {view: one for view, one in found.items() if one} == {}
