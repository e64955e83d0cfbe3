"""An unknown collection is answered by the nearest name, at a cost that no names drive up."""

import difflib

import pytest

from imagekin.index.unknown import UnknownCollectionError


def test_few_of_a_thousand_names_alike_are_compared_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    ratio = difflib.SequenceMatcher.ratio

    def counted(matcher: "difflib.SequenceMatcher[str]") -> float:
        nonlocal compared
        compared += 1
        return ratio(matcher)

    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", counted)
    names = [f"{'a' * 50}-{number:05d}" for number in range(1_000)]
    error = UnknownCollectionError.of(f"{'a' * 50}-00678x", names).suggesting()
    assert str(error).endswith(f"did you mean '{'a' * 50}-00678'?")
    assert 0 < compared < 100
