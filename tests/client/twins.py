"""Drives the async client as if it were the sync one, so that every test of a client holds for both."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from imagekin import AsyncClient


class Blocking:
    """An AsyncClient whose methods wait for their results."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncClient:
            return AsyncClient(address, **options)

        try:
            self._client = self._loop.run_until_complete(make())
        except BaseException:
            self._loop.close()
            raise

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if inspect.isasyncgen(result):
                return self._loop.run_until_complete(_gathered(result))
            return self._loop.run_until_complete(result)

        return call

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _gathered(results: Any) -> list[Any]:
    return [result async for result in results]
