"""Access to the page: it asks for a token, says when one may only read, and follows the reader's theme and width."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.serving.http.calling import calling
from tests.serving.page.browser import Visit, visiting
from tests.serving.page.processes import Served, serving
from tests.serving.running import png
from tests.waiting import wait_until

READER, WRITER = "reader-token-reader-token", "writer-token-writer-token"


@dataclass(frozen=True)
class Protected:
    """A server that wants tokens.

    Attributes:
        port: of HTTP.
        hang_up: has it read the tokens anew.
        tokens: their file.
    """

    port: int
    hang_up: Callable[[], None]
    tokens: Path


@pytest.fixture(scope="module")
def protected(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    """A server that wants a token, with one item."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    text = "".join(
        f'[[token]]\nname = "{scope}"\nscope = "{scope}"\ntoken = "{token}"\n'
        for scope, token in (("read", READER), ("write", WRITER))
    )
    tokens.touch(mode=0o600)
    tokens.write_text(text)
    options = ("--tokens-file", str(tokens), "--allow-insecure")
    with serving(model_path, tmp_path_factory.mktemp("data"), *options) as server:
        with calling(server.port) as call:
            allowed = {"authorization": f"Bearer {WRITER}"}
            assert call("POST", "/v1/collections", {"name": "shop"}, headers=allowed).status == 200
            for key in ("one", "two"):
                path = f"/v1/collections/shop/items?key={key}"
                assert call("POST", path, png(len(key)), "image/png", headers=allowed).status == 200
        yield Protected(server.port, server.hang_up, tokens)


def give_token(visit: Visit, token: str) -> None:
    """Give a token to the page that asks for one."""
    visit.page.locator("dialog.asks input[type=password]").fill(token)
    visit.page.keyboard.press("Enter")


def test_a_token_is_asked_for_until_it_is_right_and_no_script_reads_it(browser: Browser, protected: Protected) -> None:
    with visiting(browser, protected.port) as visit:
        visit.open("#browse?collection=shop")
        give_token(visit, "wrong-token-wrong-token")
        expect(visit.page.locator("dialog.asks .error")).to_contain_text("not accepted")
        give_token(visit, WRITER)
        assert set(visit.tiles()) == {"one", "two"}
        visit.page.keyboard.press("t")
        visit.page.reload()
        assert set(visit.tiles()) == {"one", "two"}
        assert visit.page.evaluate("() => document.documentElement.dataset.theme") == "dark"
        kept = "() => JSON.stringify([localStorage, sessionStorage, document.cookie])"
        assert visit.page.evaluate(kept) == '[{},{},"imagekin-theme=dark"]'
        assert WRITER not in visit.page.content() + visit.page.url
        (cookie,) = [one for one in visit.page.context.cookies() if one["name"] == f"imagekin-session-{protected.port}"]
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Strict", -1)
        # What was begun with the cookie is a write that is accepted.
        visit.page.locator(f"{visit.tile('one')} .choose").click()
        visit.page.keyboard.press("l")
        visit.page.locator("dialog.asks input").fill("apple")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator(".note")).to_contain_text("labelled")
        visit.page.get_by_role("button", name="Log out").click()
        expect(visit.page.locator("dialog.asks input[type=password]")).to_be_visible()
        assert [one["name"] for one in visit.page.context.cookies()] == ["imagekin-theme"]


def test_a_token_that_may_only_read_shows_a_page_that_only_reads(browser: Browser, protected: Protected) -> None:
    with visiting(browser, protected.port) as visit:
        visit.open("#browse?collection=shop")
        give_token(visit, READER)
        visit.tiles()
        expect(visit.page.get_by_text("read only")).to_be_visible()
        # Two rows of the header hold all of it on a telephone, too.
        visit.page.set_viewport_size({"width": 390, "height": 800})
        visit.page.locator("header option").evaluate("one => one.textContent = 'a-collection-of-a-long-name'")
        box = visit.page.locator("header").bounding_box()
        assert box is not None
        assert box["height"] < 110
        visit.page.set_viewport_size({"width": 1280, "height": 800})
        visit.page.locator(f"{visit.tile('one')} .choose").click()
        expect(visit.page.get_by_role("button", name="Export")).to_be_visible()
        expect(visit.page.get_by_role("button", name="Delete")).to_be_hidden()
        visit.page.keyboard.press("Delete")
        expect(visit.page.locator(".note.failed")).to_contain_text("may only read")
        assert set(visit.tiles()) == {"one", "two"}


def test_a_token_that_is_gone_after_a_reload_ends_the_open_page(browser: Browser, protected: Protected) -> None:
    whole = protected.tokens.read_text()
    with visiting(browser, protected.port) as visit:
        visit.open("#browse?collection=shop")
        give_token(visit, READER)
        visit.tiles()
        try:
            protected.tokens.write_text(whole.replace(READER, "another-token-another-token"))
            protected.hang_up()
            with calling(protected.port) as call:
                old = {"authorization": f"Bearer {READER}"}
                wait_until(lambda: call("GET", "/v1/models", headers=old).status == 401)
            visit.page.get_by_role("link", name="Status").click()
            give_token(visit, WRITER)
            visit.page.get_by_role("link", name="Browse").click()
            assert set(visit.tiles()) == {"one", "two"}
        finally:
            protected.tokens.write_text(whole)
            protected.hang_up()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_both_themes_fit_any_width(browser: Browser, server: Served, shop: str, scheme: str, width: int) -> None:
    size = {"width": width, "height": 800}
    with visiting(browser, server.port, viewport=size, color_scheme=scheme) as visit:
        for view in ("#search", "#search?like=k0", "#search?like=k0&item=k1", "#browse", "#review", "#status"):
            visit.open(view)
            visit.page.wait_for_selector(".drop:visible, .tile .open, table, .lists .number")
            assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= width
        light = visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
        assert light == (scheme == "light")
        visit.page.keyboard.press("t")
        assert (
            visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
        ) != light


def test_measurements_are_shown(visit: Visit, shop: str) -> None:
    visit.open("#status")
    expect(visit.page.locator("table").first).to_contain_text("shop")
    expect(visit.page.locator(".card").first).to_contain_text("Calls a second")
    expect(visit.page.locator("table").nth(1)).to_contain_text("tiny")
