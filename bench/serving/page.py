"""Measure the page in Chromium at a real server with 100,000 items.

    python -m bench.serving.page --model MODEL.onnx --pictures FOLDER [--items 100000] [--folder FOLDER]

The items are the embeddings of 200 of the pictures, with noise, and have their thumbnails. Other pictures of the folder
are dropped, one after the other: measured in the page is the time from the drop to the first result's tile, and to 24
thumbnails. Then the grid of all items is scrolled for five seconds, by a screen every tenth of a second, and the
longest time between two frames is taken. The bytes of the first visit are what came over the network.
"""

import argparse
import hashlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from bench.harness import Target, report
from bench.serving.process import environment
from imagekin import Client, Item
from imagekin.encoder.decoding.thumbnail import thumbnail

PICTURES, DROPS, THUMBNAILS = 200, 30, 24
_AT_ONCE = 1_000
_WARM_UP = 5
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
_WATCH = """() => {
  window.measured = {};
  window.asked = false;
  new MutationObserver(() => {
    const now = performance.now() - window.began;
    // Until the answer is there, the tiles are those of the last picture.
    const busy = document.querySelector(".results").classList.contains("busy");
    window.asked ||= busy;
    if (busy || !window.asked) return;
    const tiles = document.querySelectorAll(".results .tile .open").length;
    const loaded = document.querySelectorAll(".results .tile .loaded").length;
    if (tiles && window.measured.first === undefined) window.measured.first = now;
    if (loaded >= COUNT && window.measured.thumbnails === undefined) window.measured.thumbnails = now;
  }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
  document.querySelector("input[type=file]").addEventListener(
    "change",
    () => Object.assign(window, { began: performance.now(), measured: {}, asked: false }),
    { capture: true });
}""".replace("COUNT", str(THUMBNAILS))
_SCROLL = """async () => {
  const gaps = [];
  let last = performance.now();
  const until = last + 5000;
  let next = last;
  while (last < until) {
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    gaps.push(now - last);
    last = now;
    if (now > next) { scrollBy(0, innerHeight); next = now + 100; }
  }
  scrollTo(0, document.body.scrollHeight);
  for (let frames = 0; frames < 30; frames++) {
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    gaps.push(now - last);
    last = now;
  }
  return gaps.sort((one, other) => other - one);
}"""


@contextmanager
def serving(model: Path, data: Path) -> Iterator[tuple[str, str]]:
    """Run a server for the length of a block; yields its address and that of its page."""
    command = [sys.executable, "-m", "imagekin", "serve", "--model", str(model), "--data-dir", str(data)]
    command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    said = ""
    try:
        assert process.stderr is not None
        while not (found := re.search(r"serving on (\S+:\d+)", said)) or not re.search(r"http://\S+:\d+/", said):
            line = process.stderr.readline()
            assert line, said
            said += line
        page = re.search(r"http://\S+:\d+/", said)
        assert page is not None
        yield found[1], page[0]
    finally:
        process.terminate()
        process.wait()


def fill(address: str, pictures: list[Path], items: int) -> None:
    """Write the items."""
    random = np.random.default_rng(0)
    data = [path.read_bytes() for path in pictures]
    small = [thumbnail(one, 160) for one in data]
    with Client(address, timeout=120) as client:
        vectors = client.embed(data)
        client.create_collection("many", thumbnail_size=160)
        for at in range(0, items, _AT_ONCE):
            numbers = np.arange(at, min(at + _AT_ONCE, items))
            noise = random.normal(0, 0.5 / vectors.shape[1] ** 0.5, (len(numbers), vectors.shape[1]))
            client.upsert(
                "many",
                [
                    Item(
                        f"item-{number:06}",
                        vector=vectors[number % len(data)] + shift,
                        label=pictures[number % len(data)].parent.name,
                        content_hash=hashlib.sha256(data[number % len(data)]).digest(),
                        thumbnail=small[number % len(data)],
                    )
                    for number, shift in zip(numbers.tolist(), noise, strict=True)
                ],
            )


def measure(page: Page, base: str, dropped: list[Path]) -> dict[str, Any]:
    """Visit the page, drop the pictures, scroll; return the figures."""
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    sizes: list[float] = []
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(base)
    page.wait_for_selector(".drop:visible")
    page.wait_for_timeout(1_000)
    first_load = sum(sizes)
    page.evaluate(_WATCH)
    first, thumbnails = [], []
    for number, path in enumerate(dropped):
        page.set_input_files("input[type=file]", str(path))
        page.wait_for_function("() => window.measured.thumbnails !== undefined", timeout=60_000)
        if number >= _WARM_UP:
            figures = page.evaluate("() => window.measured")
            first.append(figures["first"])
            thumbnails.append(figures["thumbnails"])
    page.goto(base + "#browse?collection=many")
    page.wait_for_selector(".tile .open")
    page.wait_for_timeout(2_000)
    gaps = page.evaluate(_SCROLL)
    return {"first_load": first_load, "first": first, "thumbnails": thumbnails, "gaps": gaps}


def p95(values: list[float]) -> float:
    """Return the 95th percentile."""
    return float(np.percentile(values, 95))


def spread(name: str, values: list[float]) -> list[str]:
    """Return a row of the table: median, 95th percentile and largest."""
    return [name, *(f"{one:.0f}" for one in (statistics.median(values), p95(values), max(values)))]


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the collection is kept for another run")
    given = parser.parse_args()
    found = sorted(path for path in given.pictures.rglob("*.jpg"))
    pictures = found[:: max(1, len(found) // (PICTURES + DROPS))][: PICTURES + DROPS]
    with tempfile.TemporaryDirectory() as temporary:
        data = given.folder or Path(temporary)
        began = time.monotonic()
        with serving(given.model, data) as (address, base), sync_playwright() as playwright:
            if not (data / "many").exists():
                fill(address, pictures[:PICTURES], given.items)
                print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            figures = measure(page, base, pictures[PICTURES:])
            browser.close()
    first, thumbnails, gaps = figures["first"], figures["thumbnails"], figures["gaps"]
    report(
        f"the page at {given.items:,} items",
        ["what", "median", "p95", "longest"],
        [
            spread("drop to first results, ms", first),
            spread(f"drop to {THUMBNAILS} thumbnails, ms", thumbnails),
            spread("between two frames of scrolling, ms", gaps),
        ],
        [
            Target("first results, p95, ms", p95(first), 300, at_least=False),
            Target(f"{THUMBNAILS} thumbnails, p95, ms", p95(thumbnails), 600, at_least=False),
            Target("longest frame, ms", gaps[0], 100, at_least=False),
            Target("first load, KB", figures["first_load"] / 1000, 120, at_least=False),
        ],
        {**figures, "gaps": gaps[:20]},
    )


if __name__ == "__main__":
    main()
