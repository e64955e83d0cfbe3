"""Bulk streams: the next batches are prepared while the last one is answered, and the answers keep their order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Note = TypeVar("Note")
Prepared = TypeVar("Prepared")

# One batch in the encoder, one being read and decoded, one being answered.
WINDOW = 3


async def in_order(
    requests: AsyncIterator[Request], begin: Callable[[Request], Awaitable[tuple[Note, asyncio.Future[Prepared]]]]
) -> AsyncGenerator[tuple[Note, Prepared], None]:
    """Prepare requests as they come, at most `WINDOW` at a time, and yield what they came to in their order.

    An error ends the stream in its turn: what came before it is answered. When the caller goes, the rest is cancelled.

    Args:
        requests: the stream.
        begin: called with each request; returns what to yield with its result, and the result to come. The next request
            is read when it has returned.
    """
    window: asyncio.Queue[tuple[Note, asyncio.Future[Prepared]] | None] = asyncio.Queue()
    places = asyncio.Semaphore(WINDOW)
    pending: deque[asyncio.Future[Prepared]] = deque()

    async def read() -> None:
        try:
            await places.acquire()
            async for request in requests:
                begun = await begin(request)
                pending.append(begun[1])
                window.put_nowait(begun)
                await places.acquire()
        finally:
            window.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (entry := await window.get()) is not None:
            note, result = entry[0], await entry[1]
            pending.popleft()
            yield note, result
            places.release()
        await reader
    finally:
        reader.cancel()
        for result_to_come in pending:
            result_to_come.cancel()
        await asyncio.gather(reader, *pending, return_exceptions=True)
