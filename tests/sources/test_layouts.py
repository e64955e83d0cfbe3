"""The layouts of docs/reference/your-images.md are read as its table says, before reading and by reading."""

from collections import Counter
from pathlib import Path

import pytest

from imagekin.sources.open import open_source
from tests.sources.layouts import IMAGE, layouts, make


def shown(counts: Counter[str]) -> str:
    """Return counts as the table has them."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def sorted_cell(cell: str) -> str:
    return ", ".join(sorted(cell.split(", ")))


@pytest.mark.parametrize(("name", "files", "labels", "splits"), layouts())
def test_a_layout_has_the_images_labels_and_splits_of_the_table(
    name: str, files: list[str], labels: str, splits: str, tmp_path: Path
) -> None:
    source = open_source(make(tmp_path / "set", files))
    records = list(source)
    assert {str(record.data) for record in records} <= {str(IMAGE)}
    assert len({record.key for record in records}) == len(records)
    assert shown(Counter(record.label or "none" for record in records)) == sorted_cell(labels)
    assert shown(Counter(record.split for record in records if record.split)) == sorted_cell(splits)
    found: Counter[tuple[str | None, str | None]] = Counter((record.label, record.split) for record in records)
    assert dict(source.plan.counts) == dict(found), "what was said before reading"
    assert abs((source.count() or len(records)) - len(records)) <= 1, "rows of tables are lines, which may be headers"
    assert [record.key for record in source] == [record.key for record in records], "a second reading is the same"


def test_the_page_has_at_least_forty_layouts_that_others_made() -> None:
    assert sum("](http" in name for name, *_ in layouts()) >= 40
    assert len(layouts()) >= 50
