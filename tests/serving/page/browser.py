"""A real browser at a real server's page, which may call nothing but that server and must report nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

CHROMIUM = os.environ.get("IMAGEKIN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    # WebGL by the processor, as in a machine without a display.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A generous limit that ends what hangs.
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start the browser for the length of a block; skip where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install Debian's chromium, or name one in IMAGEKIN_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that is open.

    Attributes:
        page: the page.
        base: the server's address, ending in `/`.
        reports: what the console said of errors and violated policies.
        strangers: addresses of other origins that were asked for.
    """

    page: Page
    base: str
    reports: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def open(self, address: str = "") -> None:
        """Go to an address below the server's."""
        self.page.goto("about:blank")
        self.page.goto(self.base + address)

    def tiles(self) -> list[str]:
        """Return the keys of the tiles, in their order on the page."""
        self.page.wait_for_selector(".results:not(.busy) .tile .open")
        tiles = self.page.locator(".tile:not(.waiting)")
        placed = tiles.evaluate_all("all => all.map(one => [+one.ariaPosInSet, one.querySelector('.key').textContent])")
        return [key for _, key in sorted(placed)]

    def tile(self, key: str) -> str:
        """Return the selector of an item's tile."""
        return f'.tile:has(.key[title="{key}"])'


@contextmanager
def visiting(browser: Browser, port: int, **options: object) -> Iterator[Visit]:
    """Open a page of its own; afterwards, fail if anything was reported or asked of another origin."""
    context = browser.new_context(**options)  # type: ignore[arg-type]  # the browser's own names
    context.set_default_timeout(WAIT_MS)
    visit = Visit(context.new_page(), f"http://127.0.0.1:{port}/")

    def heard(message: ConsoleMessage) -> None:
        # An answer with an error's status is one that the page shows; the browser notes it all the same.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            visit.reports.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith((visit.base, "blob:", "about:", "data:")):
            visit.strangers.append(request.url)

    visit.page.on("console", heard)
    visit.page.on("pageerror", lambda error: visit.reports.append(str(error)))
    context.on("request", asked)
    try:
        yield visit
        assert visit.reports == []
        assert visit.strangers == []
    except BaseException:
        if folder := os.environ.get("IMAGEKIN_SCREENSHOTS"):
            visit.page.screenshot(path=Path(folder) / "failed.png")
        raise
    finally:
        context.close()
