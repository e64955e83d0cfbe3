"""Answer bulk streams in order, preparing the next batches while one is answered."""

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
    """Prepare requests as they come, at most `WINDOW` at a time, and yield the results in order.

    An error ends the stream in its turn: earlier requests are answered. When the caller goes away, the rest is dropped.

    Args:
        requests: the stream.
        begin: called with each request; returns a note to yield with the result, and the result's future. The next
            request is read when it has returned.
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
