"""Limit a pipeline's queue, by its size and by the time that it takes, and keep room in it for every caller."""

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from imagekin.errors import ResourceExhaustedError
from imagekin.serving.settings import Limits
from imagekin.serving.transport.callers import most_of_one
from imagekin.serving.transport.turns import Path

# The wait is only guessed; a call let in that is then too late costs an answer that somebody else could have had.
_CAUTION = 1.3
# With so much to do in the queue a call may have to be refused.
_LONG_QUEUE_SECONDS = 0.1
_LEAST_RETRY_SECONDS = 0.05
_MOST_RETRY_SECONDS = 30.0


class Load(NamedTuple):
    """A request's part of the queue.

    Attributes:
        images: number of images.
        size: their bytes.
        cost: seconds that they take by themselves, as guessed from their headers.
    """

    images: int = 0
    size: int = 0
    cost: float = 0.0


class Pace:
    """Running mean of the seconds that a second of cost takes while the queue is not empty. For the event loop only.

    Args:
        clock: returns the time in seconds.
    """

    _SPAN_SECONDS = 0.25
    # What was learned so long ago may no longer hold.
    _FORGOTTEN_SECONDS = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ratio = 0.0  # 0 as long as nothing is known
        self._since = 0.0
        self._cost = 0.0

    def begin(self) -> None:
        """Start measuring, because the queue is no longer empty."""
        now = self._clock()
        if now - self._since > self._FORGOTTEN_SECONDS:
            self._ratio = 0.0
        self._since, self._cost = now, 0.0

    def ended(self, cost: float, *, empty: bool) -> None:
        """Add the cost of images that have left; `empty` tells whether they were the last ones in the queue."""
        self._cost += cost
        now = self._clock()
        passed = now - self._since
        if not self._cost or not (empty or passed >= self._SPAN_SECONDS):
            return
        latest = passed / self._cost
        if passed >= self._SPAN_SECONDS:
            self._ratio = 0.5 * (self._ratio + latest) if self._ratio else latest
        else:
            # A queue that was short for a moment shows that the pace is no slower than this; batches make it faster.
            self._ratio = min(self._ratio, latest)
        self._since, self._cost = now, 0.0

    def seconds_for(self, cost: float) -> float:
        """Return how long this takes, in seconds; 0 while that is not known."""
        return cost * self._ratio


class _Member:
    """A caller, a connection or a request, with what it has in the queue."""

    __slots__ = ("cost", "images", "members", "size")

    def __init__(self) -> None:
        self.images = self.size = 0
        self.cost = 0.0
        self.members: dict[Hashable, _Member] = {}

    def add(self, path: Path, load: Load) -> None:
        """Add what a request takes, to all of its path; negative loads take it out."""
        self.images += load.images
        self.size += load.size
        # Sums of fractions come back to zero only roughly.
        self.cost = self.cost + load.cost if self.images else 0.0
        if not path:
            return
        member = self.members.get(path[0])
        if member is None:
            member = self.members[path[0]] = _Member()
        member.add(path[1:], load)
        if not member.images:
            del self.members[path[0]]

    def turn(self, path: Path, cost: float) -> float:
        """Return the cost of what is served until a request is, when all members take turns.

        Until a member has got its own cost, every other one has got as much, or all that it wants.
        """
        if not path:
            return cost
        own = self.members.get(path[0])
        wanted = cost if own is None else own.turn(path[1:], cost)
        others = (member.cost for name, member in self.members.items() if name != path[0])
        return wanted + sum(min(other, wanted) for other in others)


class Admission:
    """Count the images in a pipeline's queue and limit their number. For the event loop only.

    Args:
        limits: ceilings.
        clock: returns the time in seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._all = _Member()
        self._limits = limits
        self._pace = Pace(clock)
        self._room = asyncio.Event()

    @property
    def queued(self) -> int:
        """Number of images waiting or being processed."""
        return self._all.images

    @property
    def queued_bytes(self) -> int:
        """Bytes of these images."""
        return self._all.size

    def refusal(self, path: Path, load: Load, timeout: float | None = None) -> ResourceExhaustedError | None:
        """Return the error for adding a request now, None when it fits.

        Args:
            path: who it is from.
            load: what it takes.
            timeout: seconds after which the caller stops waiting; None for never.
        """
        if not self.queued:
            return None
        if not (self._fits(load) and self._fits_caller(path, load)):
            wait = min(max(self._pace.seconds_for(self._all.cost), _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)
            return ResourceExhaustedError("the queue is full: try again later", retry_after=wait)
        # Whoever would be answered too late is told now, instead of pushing others behind their deadlines, too.
        if timeout is None or _CAUTION * self._pace.seconds_for(self._all.cost + load.cost) <= timeout:
            return None
        wait = self._pace.seconds_for(self._all.turn(path, load.cost))
        if _CAUTION * wait > timeout:
            return ResourceExhaustedError(
                "the queue is too long for the call's deadline: try again later",
                retry_after=min(wait, _MOST_RETRY_SECONDS),
            )
        return None

    def may_refuse(self) -> bool:
        """Return whether the queue is so long that `refusal` should be called before a request is read."""
        if not self.queued:
            return False
        return not self._fits(Load(1)) or self._pace.seconds_for(self._all.cost) > _LONG_QUEUE_SECONDS

    async def wait_for_room(self, load: Load) -> None:
        """Wait until a batch of a bulk stream fits."""
        # They fill half of the queue at most, so that single calls find room beside them.
        while self.queued and not self._fits(load, share=2):
            self._room.clear()
            await self._room.wait()

    def enter(self, path: Path, load: Load) -> None:
        """Add a request."""
        if not self.queued:
            self._pace.begin()
        self._all.add(path, load)

    def leave(self, path: Path, load: Load, *, wanted: bool) -> None:
        """Remove a request; `wanted` tells whether it was finished for a caller who still waited."""
        self._all.add(path, Load(-load.images, -load.size, -load.cost))
        if wanted:
            self._pace.ended(load.cost, empty=not self.queued)
        self._room.set()

    def _fits(self, load: Load, share: int = 1) -> bool:
        return (
            self.queued + load.images <= self._limits.max_queue // share
            and self.queued_bytes + load.size <= self._limits.max_queue_bytes // share
        )

    def _fits_caller(self, path: Path, load: Load) -> bool:
        caller = self._all.members.get(path[0])
        if caller is None:
            return True
        return caller.images + load.images <= most_of_one(
            self._limits.max_queue
        ) and caller.size + load.size <= most_of_one(self._limits.max_queue_bytes)
