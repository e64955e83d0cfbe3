"""Take the README's picture of the page.

    python -m tests.serving.page.readme_picture MODEL.onnx SOURCE PICTURE.jpg [docs/page.jpg]

SOURCE is indexed as by `imagekin index`; PICTURE, which should be none of its own, is dropped on the page.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.e2e.processes import IMAGEKIN
from tests.serving.page.browser import browsing, visiting
from tests.serving.page.processes import serving

SIZE = {"width": 1280, "height": 820}
QUALITY = 82


def take(model: Path, source: Path, picture: Path, out: Path) -> None:
    """Index the source, drop the picture, and write what the page then shows."""
    with tempfile.TemporaryDirectory() as temporary:
        place = ["--data-dir", temporary, "--model", str(model)]
        subprocess.run([*IMAGEKIN, "index", "photos", str(source), *place], check=True)
        with (
            serving(model, Path(temporary)) as server,
            browsing() as browser,
            visiting(browser, server.port, viewport=SIZE, color_scheme="light") as visit,
        ):
            visit.open()
            # The first question warms the server up.
            for _ in range(3):
                visit.page.set_input_files("input[type=file]", str(picture))
                visit.tiles()
                visit.page.wait_for_selector(".votes li")
            visit.page.wait_for_function(
                "() => [...document.querySelectorAll('.tile .picture')].slice(0, 12)"
                ".every(one => one.classList.contains('loaded'))"
            )
            shown = visit.page.screenshot(animations="disabled", caret="hide")
    Image.open(io.BytesIO(shown)).convert("RGB").save(out, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    model, source, picture, *more = map(Path, sys.argv[1:])
    take(model, source, picture, more[0] if more else Path("docs/page.jpg"))
