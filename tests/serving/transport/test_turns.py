"""Members take turns by cost, whatever each of them has waiting."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from imagekin.serving.transport.turns import Turns

QUANTUM = 1.0
PATHS = st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 3))


def drained(turns: Turns[str]) -> list[str]:
    return [turns.pop()[0] for _ in iter(lambda: bool(turns), False)]


def test_one_member_is_served_in_order() -> None:
    turns: Turns[str] = Turns(QUANTUM)
    for item in "abcdef":
        turns.push(("me",), item, 0.4)
    assert drained(turns) == list("abcdef")


def test_small_requests_are_served_one_after_the_other() -> None:
    turns: Turns[str] = Turns(QUANTUM)
    for item in ("a1", "b1", "a2", "b2", "a3", "b3"):
        turns.push((item[0],), item, 0.1)
    assert drained(turns) == ["a1", "a2", "a3", "b1", "b2", "b3"]


def test_a_small_request_comes_after_one_turn_of_a_large_one() -> None:
    turns: Turns[str] = Turns(QUANTUM)
    for number in range(50):
        turns.push(("large",), f"large {number}", 2.0)
    assert turns.pop()[0] == "large 0"
    turns.push(("small",), "small", 0.1)
    assert turns.pop()[0] == "small"


def test_whoever_comes_back_owes_what_it_has_had() -> None:
    turns: Turns[str] = Turns(QUANTUM)
    turns.push(("one at a time",), "first", 5.0)
    for number in range(10):
        turns.push(("small",), f"small {number}", 1.0)
    assert turns.pop()[0] == "first"
    turns.push(("one at a time",), "second", 5.0)
    assert [turns.pop()[0] for _ in range(5)] == [f"small {number}" for number in range(5)]


def test_whoever_was_away_has_no_claim_to_what_it_has_missed() -> None:
    turns: Turns[str] = Turns(QUANTUM)
    for _ in range(40):
        turns.push(("busy",), "busy", 1.0)
        turns.push(("steady",), "steady", 1.0)
    for _ in range(20):
        turns.pop()
    for _ in range(40):
        turns.push(("late",), "late", 1.0)
    assert max(Counter(turns.pop()[0] for _ in range(30)).values()) <= 11


def test_many_members_of_a_member_share_its_turns() -> None:
    turns: Turns[str] = Turns(QUANTUM)
    for number in range(20):
        turns.push(("crowd", number), "crowd", 1.0)
        turns.push(("alone", 0), "alone", 1.0)
    assert Counter(turns.pop()[0] for _ in range(20)) == {"crowd": 10, "alone": 10}


@given(st.lists(st.tuples(PATHS, st.floats(0.01, 5.0)), max_size=60))
def test_nothing_is_lost_or_doubled(pushed: list[tuple[tuple[object, ...], float]]) -> None:
    turns: Turns[str] = Turns(QUANTUM)
    for number, (path, cost) in enumerate(pushed):
        turns.push(path, str(number), cost)
    assert sorted(turns) == sorted(map(str, range(len(pushed))))
    assert sorted(drained(turns)) == sorted(map(str, range(len(pushed))))
    assert not turns


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.01, 5.0)), min_size=1, max_size=60))
def test_of_two_that_always_wait_none_gets_ahead_by_more_than_a_turn_and_an_item(
    given: list[tuple[str, float]],
) -> None:
    turns: Turns[str] = Turns(QUANTUM)
    costs = {name: [cost for one, cost in given if one == name] for name in "ab"}
    for name, waiting in costs.items():
        for cost in waiting:
            turns.push((name,), name, cost)
    spent = Counter[str]()
    left = {name: len(waiting) for name, waiting in costs.items()}
    while all(left.values()):
        name, cost = turns.pop()
        spent[name] += cost  # type: ignore[assignment]  # counters of seconds
        left[name] -= 1
        assert abs(spent["a"] - spent["b"]) <= 2 * (QUANTUM + 5.0)


def test_members_that_came_once_are_not_remembered_for_ever() -> None:
    turns: Turns[int] = Turns(QUANTUM)
    turns.push(("always",), 0, 0.0)
    for number in range(10_000):
        turns.push((number,), number, 0.1)
        turns.pop()
    assert len(turns._debts) < 100
