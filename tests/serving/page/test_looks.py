"""Looks of each view in both themes, against pictures that were looked at: at most a thousandth of the pixels differs.

`IMAGEKIN_NEW_LOOKS=1 python -m pytest tests/serving/page/test_looks.py` makes the pictures anew; look at them before
they are committed. Letters differ between machines, and so may last digits: the pictures are compared where the
browser, the fonts and the processor are those that made them.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser

from imagekin import Client, Item
from imagekin.machine import processor
from tests.serving.page.browser import Visit, visiting
from tests.serving.page.processes import Served

FOLDER = Path(__file__).with_name("looks")
SIZE = {"width": 960, "height": 640}
MOST_DIFFERING = 0.001
# Of 255 in any channel; less is nothing that anybody sees.
DIFFERS = 8
NEW = bool(os.environ.get("IMAGEKIN_NEW_LOOKS"))
LABELS = ("apple", "pear", "plum", "fig")
COLOURS = ("firebrick", "olivedrab", "rebeccapurple", "saddlebrown")
# Elements that show times and sizes, or what a graphics processor draws.
MOVING = (".results > .said", ".cards", "thead", "tbody", "canvas")
# View → its address and what is there once it is complete.
VIEWS = {
    "search": ("#search?collection=fruit", ".drop"),
    "results": ("#search?collection=fruit&like=apple-0", ".votes li"),
    "item": ("#search?collection=fruit&like=apple-0&item=pear-1", "dialog.item .near li"),
    "browse": ("#browse?collection=fruit", ".value"),
    "review": ("#review?collection=fruit&list=labels", ".lists .number"),
    "next": ("#review?collection=fruit&list=next", ".lists .number"),
    "map": ("#map?collection=fruit", ".notice, canvas"),
    "status": ("#status", "table"),
}


def drawing(kind: int, number: int) -> bytes:
    """Draw a fruit: a disc of its kind's colour on a light ground, each a little elsewhere."""
    image = Image.new("RGB", (160, 120), (236, 232, 224))
    left, top = 30 + 7 * number, 20 + 3 * number
    ImageDraw.Draw(image).ellipse((left, top, left + 60 + 5 * kind, top + 60), fill=COLOURS[kind])
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def fruit(server: Served) -> Iterator[str]:
    """A collection of drawn fruit, one with a wrong label and some without any."""
    with Client(server.address) as client:
        client.create_collection("fruit", space="drawn", dim=16, thumbnail_size=160)
        random = np.random.default_rng(7)
        items = []
        for kind, label in enumerate(LABELS):
            for number in range(8):
                vector = random.normal(0, 0.15, 16) + np.eye(16)[kind]
                jpeg = drawing(kind, number)
                given = {5: None, 6: LABELS[(kind + 1) % 4]}.get(number, label)
                digest = hashlib.sha256(jpeg).digest()
                payload = {"price": 10 * kind + number}
                items.append(
                    Item(
                        f"{label}-{number}",
                        vector=vector,
                        label=given,
                        payload=payload,
                        content_hash=digest,
                        thumbnail=jpeg,
                    )
                )
        client.upsert("fruit", items)
        yield "fruit"
        client.drop_collection("fruit")


def machine(browser: Browser) -> dict[str, str]:
    """Return the browser's version, the fonts and the processor: letters and rounded figures depend on them."""
    lister = shutil.which("fc-list")
    listed = "" if lister is None else subprocess.run([lister, ":", "file"], capture_output=True, text=True).stdout
    names = sorted(Path(line.rstrip(": ")).name for line in listed.splitlines())
    fonts = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"browser": browser.version, "fonts": fonts, "processor": processor()}


def look(visit: Visit, view: str) -> Image.Image:
    """Return a picture of a view, once all of its thumbnails are there; what changes by itself is painted over."""
    address, complete = VIEWS[view]
    visit.open(address)
    visit.page.wait_for_selector(f":is({complete}):visible")
    visit.page.wait_for_function(
        "() => !document.querySelector('.busy') && document.fonts.status === 'loaded' &&"
        " [...document.querySelectorAll('.tile:not(.waiting) .picture, dialog[open] .picture, .chip .picture')]"
        ".every(one => one.classList.contains('loaded'))"
    )
    moving = [
        visit.page.locator(one) for one in (".results > .said", ".cards", "thead", "tbody", "canvas") if view != "item"
    ]
    taken = visit.page.screenshot(animations="disabled", caret="hide", mask=moving, mask_color="#808080")
    return Image.open(io.BytesIO(taken)).convert("RGB")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_views_look_as_they_did_when_somebody_looked(
    browser: Browser, server: Served, fruit: str, scheme: str, tmp_path: Path
) -> None:
    here = machine(browser)
    if not NEW and here != json.loads((FOLDER / "machine.json").read_text()):
        pytest.skip(f"the pictures were made with another browser, fonts or processor than here ({here['browser']})")
    if NEW:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "machine.json").write_text(json.dumps(here, indent=1) + "\n")
    others = {}
    with visiting(browser, server.port, viewport=SIZE, color_scheme=scheme, reduced_motion="reduce") as visit:
        for view in VIEWS:
            name, now = f"{view}-{scheme}.png", look(visit, view)
            if NEW:
                now.quantize(256, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
                continue
            then = Image.open(FOLDER / name).convert("RGB")
            seen = now.quantize(256, dither=Image.Dither.NONE).convert("RGB")
            differing = np.abs(np.asarray(seen, np.int16) - np.asarray(then, np.int16)).max(axis=2) > DIFFERS
            if differing.mean() > MOST_DIFFERING:
                now.save(tmp_path / name)
                others[name] = f"{differing.mean():.2%} of the pixels differ: see {tmp_path / name}"
    assert others == {}
