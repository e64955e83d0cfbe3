"""What to label next: where the neighbours disagree, spread out, the midst of many first."""

import numpy as np

from imagekin.index.review.opinions import Judge
from imagekin.index.review.to_label import Questions
from imagekin.types import Neighbour


def near(*described: tuple[str, float, str | None]) -> list[Neighbour]:
    return [Neighbour(*one) for one in described]


def add(questions: Questions, key: str, label: str, neighbours: list[Neighbour]) -> None:
    """Take an item with the opinion that its neighbours' votes alone make."""
    (opinion,) = Judge(linear=False).opinions(np.zeros((1, 2), np.float32), [label], [neighbours])
    questions.add(key, label, neighbours, opinion)


def test_the_least_certain_come_first_and_what_has_a_label_never() -> None:
    questions = Questions()
    add(questions, "sure", "", near(("a", 0.9, "cat"), ("b", 0.9, "cat")))
    add(questions, "torn", "", near(("a", 0.9, "cat"), ("b", 0.9, "dog")))
    add(questions, "leaning", "", near(("a", 0.9, "cat"), ("b", 0.85, "dog")))
    add(questions, "labelled", "dog", near(("a", 0.9, "cat")))
    add(questions, "alone", "", [])
    found = questions.findings(3)
    assert [(one.key, one.proposed) for one in found] == [("torn", "cat"), ("alone", ""), ("leaning", "cat")]
    assert all(one.kind == "next" for one in found)
    assert found[0].score == 1


def test_no_two_neighbours_are_asked_about_while_others_are_left() -> None:
    """Of three groups without any label, each first asks one, the densest first; then come the others."""
    questions = Questions()
    for group, similarity in (("x", 0.7), ("y", 0.9), ("z", 0.8)):
        members = [f"{group}{number}" for number in range(4)]
        for one in members:
            add(questions, one, "", near(*((other, similarity, None) for other in members if other != one)))
    assert [one.key[0] for one in questions.findings(3)] == ["y", "z", "x"]
    assert len({one.key for one in questions.findings(12)}) == 12
    assert len(questions.findings(100)) == 12
    assert questions.findings(0) == []
