"""Tables in a terminal show their cells whole."""

import sys

import pytest

from imagekin.cli.shared.console import print_table


def test_a_narrow_terminal_cuts_off_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    key = "Red-Bell-Pepper/Red-Bell-Pepper_0023.jpg"
    print_table(["key", "label"], [(key, "Red-Bell-Pepper")])
    cells = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(cells) == key
