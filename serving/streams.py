"""Bulk streams: the next batches are prepared while the last one is answered, and the answers keep their order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Prepared = TypeVar("Prepared")

# One batch in the encoder, one being read and decoded, one being answered.
WINDOW = 3


async def in_order(
    requests: AsyncIterator[Request], prepare: Callable[[Request], Awaitable[Prepared]]
) -> AsyncGenerator[tuple[Request, Prepared], None]:
    """Prepare requests as they come, at most `WINDOW` at a time, and yield them in their order.

    An error ends the stream in its turn: what came before it is answered. When the caller goes, the rest is cancelled.
    """
    window: asyncio.Queue[tuple[Request, asyncio.Task[Prepared]] | None] = asyncio.Queue()
    places = asyncio.Semaphore(WINDOW)
    tasks: deque[asyncio.Task[Prepared]] = deque()

    async def prepared(request: Request) -> Prepared:
        return await prepare(request)

    async def read() -> None:
        try:
            await places.acquire()
            async for request in requests:
                task = asyncio.create_task(prepared(request))
                tasks.append(task)
                window.put_nowait((request, task))
                await places.acquire()
        finally:
            window.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (entry := await window.get()) is not None:
            request, task = entry
            result = await task
            tasks.popleft()
            yield request, result
            places.release()
        await reader
    finally:
        for pending in (reader, *tasks):
            pending.cancel()
        await asyncio.gather(reader, *tasks, return_exceptions=True)
