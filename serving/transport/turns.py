"""Order items so that their members take turns: each gets as much as the others by cost, and its members share that.

This is start-time fair queueing (Goyal, Vin and Cheng, 1996) in a tree, with turns of a fixed length instead of single
items, so that small requests are served one after the other and none is drawn out by the others.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
# Who an item is from: a caller, one of its connections, one of the requests there.
Path = tuple[Hashable, ...]

# Debts of members that have nothing left are dropped when there are so many beside twice as many as members.
_MOST_DEBTS = 64


class Turns(Generic[Item]):
    """Items in the order in which their members take turns. Not thread-safe.

    Args:
        quantum: cost of one turn.
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        # A member is a queue of items or, above it, the turns of its own members.
        self._members: dict[Hashable, Turns[Item] | deque[tuple[Item, float]]] = {}
        # What each member has spent before its turn, its place among equals, and its name.
        self._order: list[tuple[float, int, Hashable]] = []
        # What members that have nothing left have spent.
        self._debts: dict[Hashable, float] = {}
        self._count = 0
        self._now = 0.0
        self._in_turn = 0.0

    def __bool__(self) -> bool:
        return bool(self._members)

    def __iter__(self) -> Iterator[Item]:
        """Yield all items, in no particular order."""
        for member in self._members.values():
            yield from member if isinstance(member, Turns) else (item for item, _ in member)

    def push(self, path: Path, item: Item, cost: float) -> None:
        """Add an item.

        Args:
            path: its member, the member of that member, and so on.
            item: the item.
            cost: what it takes of a turn.
        """
        name, rest = path[0], path[1:]
        member = self._members.get(name)
        if member is None:
            member = self._members[name] = Turns(self._quantum) if rest else deque()
            self._count += 1
            # One that comes back owes what it has had; one that was away has no claim to what it has missed.
            spent = max(self._now, self._debts.pop(name, 0.0))
            heapq.heappush(self._order, (spent, self._count, name))
        if rest:
            cast(Turns[Item], member).push(rest, item, cost)
        else:
            cast("deque[tuple[Item, float]]", member).append((item, cost))

    def pop(self) -> tuple[Item, float]:
        """Take the next item and its cost; there must be one."""
        spent, _, name = self._order[0]
        self._now = spent
        member = self._members[name]
        item, cost = member.pop() if isinstance(member, Turns) else member.popleft()
        self._in_turn += cost
        if not member:
            heapq.heappop(self._order)
            del self._members[name]
            self._owe(name, spent + self._in_turn)
            self._in_turn = 0.0
        elif self._in_turn >= self._quantum:
            self._count += 1
            heapq.heapreplace(self._order, (spent + self._in_turn, self._count, name))
            self._in_turn = 0.0
        return item, cost

    def _owe(self, name: Hashable, spent: float) -> None:
        if not self._members:
            # Nobody waited: all begin anew.
            self._now = spent
            self._debts.clear()
            return
        self._debts[name] = spent
        if len(self._debts) > _MOST_DEBTS + 2 * len(self._members):
            self._debts = {name: debt for name, debt in self._debts.items() if debt > self._now}
        if len(self._debts) > _MOST_DEBTS + 2 * len(self._members):
            # Members that came once, as single requests do.
            self._debts.clear()
