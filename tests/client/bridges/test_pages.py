"""What the how-tos on data sets and bridges show runs, section by section, where the section's library is installed."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.client.bridges.shop import filled_shop
from tests.e2e.pictures import COLOURS, picture
from tests.project.fences import ROOT, text
from tests.project.shell import run_bash

# The library of each section, by its title.
SECTIONS = {
    "Hugging Face": "datasets",
    "torch": "torchvision",
    "FiftyOne": "fiftyone",
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index",
}
PAGES = ("docs/how-to/data-sets.md", "docs/how-to/bridges.md")
_FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_section_of_the_pages_is_run() -> None:
    titles = [title for page in PAGES for title in re.findall(r"^## (.+)$", text(page), re.MULTILINE)]
    assert titles == list(SECTIONS)
    assert not any(_FENCE.search(text(page).split("\n## ")[0]) for page in PAGES)


@pytest.mark.parametrize("title", SECTIONS)
def test_what_a_section_shows_runs(title: str, tmp_path: Path) -> None:
    for library in (SECTIONS[title], *(["mongomock"] if title == "FiftyOne" else [])):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed: python -m tests.client.bridges")
    with filled_shop(tmp_path):
        (tmp_path / "photo.jpg").write_bytes(picture(COLOURS["red"], 77, format="JPEG"))
    section = next(part for page in PAGES for part in text(page).split("\n## ") if part.startswith(f"{title}\n"))
    script = []
    for number, (language, block) in enumerate(_FENCE.findall(section)):
        if language == "bash":
            script += [line for line in block.splitlines() if not line.startswith("pip install ")]
            continue
        # MongoDB is not to be had from pip; FiftyOne keeps its samples in memory here.
        mock = "from tests.client.bridges.mongo import replace_mongo\nreplace_mongo()\n" if title == "FiftyOne" else ""
        (tmp_path / f"block-{number}.py").write_text(mock + block)
        script.append(f"PYTHONPATH={ROOT} {sys.executable} block-{number}.py")
    status, said = run_bash("\n".join(script), tmp_path, {}, traced=True)
    assert status == 0, said
