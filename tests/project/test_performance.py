"""No figure is claimed without its row, and no row says what the record does not."""

import re

import pytest

from reference.performance import files
from tests.project.fences import ROOT, text

RECORD = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
SECTIONS = {part.split(" — ")[0].strip(): part for part in re.split(r"^## ", RECORD, flags=re.MULTILINE)[1:]}
SECTIONS |= {part.split("\n")[0].strip(): part for part in SECTIONS.values()}


@pytest.mark.parametrize("name", files())
def test_every_row_stands_in_the_record(name: str) -> None:
    found = files()[name]
    section = SECTIONS[found["section"]]
    for row in found["rows"]:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row["recorded"])
        for key in ("imagekin", "theirs", "ratio", "target"):
            for number in re.findall(r"\d[\d,.]*\d|\d", row[key]):
                assert number in section, f"{row['what']}: {key} {row[key]}"
        assert "missed" not in row["verdict"] or row["target"] or "CPU seconds" in row["what"]
    for curves in found.get("curves", ()):
        points = [value for series in curves.get("series", {}).values() for point in series for value in point]
        for value in [*points, *curves.get("bars", {}).values()]:
            shown = {f"{value:,}", f"{value:.3f}", f"{value:g}"}
            assert any(one in section for one in shown), f"{curves['title']}: {value}"


def test_the_comparison_of_the_first_page_has_its_rows() -> None:
    ratios = {ratio for found in files().values() for row in found["rows"] for ratio in row["ratio"].split(", ")}
    comparison = text("README.md").split("## How it compares")[1].split("\n## ")[0]
    claimed = re.findall(r"^\|[^|]*\|[^|]*\| ([^|]*×) \|$", comparison, re.MULTILINE)
    assert len(claimed) == 10
    assert {ratio for one in claimed for ratio in one.split(", ")} <= ratios
