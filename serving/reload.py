"""Reload certificates, tokens, models and collections while the server runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from imagekin.errors import FailedPreconditionError, ImagekinError
from imagekin.serving.collections.open_collections import CollectionStore
from imagekin.serving.embedding.models import Models
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.settings import Settings
from imagekin.serving.transport.access import Guard
from imagekin.serving.transport.tls import Certificates

log = logging.getLogger("imagekin.serving")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Models and collections that a reload has loaded, by name.

    Attributes:
        models: names of the models.
        collections: names of the collections.
    """

    models: Sequence[str]
    collections: Sequence[str]


class Reloader:
    """Reload on request, one reload at a time.

    Args:
        settings: the server's settings.
        models: the loaded models.
        store: the collections.
        certificates: of TLS, None without.
        guard: the tokens, None without.
        metrics: counts the reloads; None counts nothing.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        store: CollectionStore,
        certificates: Certificates | None,
        guard: Guard | None,
        metrics: Metrics | None,
    ) -> None:
        self._settings = settings
        self._models = models
        self._store = store
        self._certificates = certificates
        self._guard = guard
        self._metrics = metrics
        self._one = asyncio.Lock()

    async def reload(self, models: Sequence[str] = (), collections: Sequence[str] = ()) -> Reloaded:
        """Reload models and collections without failing a call; with no names certificates and tokens, too.

        Each part that cannot be loaded stays as it was, and does not keep the others from being loaded.

        Args:
            models: names of models.
            collections: names of collections; both empty means everything.

        Raises:
            NotFoundError: there is no such model or collection; nothing was loaded.
            FailedPreconditionError: something could not be loaded; the log says why.
        """
        # In a task of its own: a caller that goes away must not leave a reload half done.
        return await asyncio.shield(asyncio.create_task(self._reload(models, collections)))

    async def finish(self) -> None:
        """Wait for the reloads in progress."""
        async with self._one:
            return

    async def _reload(self, models: Sequence[str], collections: Sequence[str]) -> Reloaded:
        for name in models:
            self._models.get(name)
        for name in collections:
            await self._store.get(name)
        everything = not models and not collections
        failed: list[str] = []
        async with self._one:
            if everything and self._certificates is not None:
                await self._try(failed, "certificates", _threaded(self._certificates.reload))
            if everything and self._guard is not None:
                await self._try(failed, "tokens", _threaded(self._guard.reload))
            loaded: list[str] = []
            if models or everything:

                async def load() -> None:
                    loaded.extend(await self._models.reload(models, self._settings, self._metrics))

                await self._try(failed, "models", load)
            opened: list[str] = []
            if collections or everything:

                async def open_anew() -> None:
                    opened.extend(await self._store.reload(collections))

                await self._try(failed, "collections", open_anew)
        if self._metrics is not None:
            self._metrics.reloaded(well=not failed)
        if failed:
            raise FailedPreconditionError(
                f"{', '.join(failed)} could not be loaded anew and stay as they were: the server's log says why"
            )
        log.info("reloaded %d models and %d collections", len(loaded), len(opened))
        return Reloaded(loaded, opened)

    async def _try(self, failed: list[str], what: str, load: Callable[[], Awaitable[None]]) -> None:
        try:
            await load()
        except ImagekinError as error:
            log.error("%s could not be loaded anew: %s", what, error)
            failed.append(what)


def _threaded(load: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.get_running_loop().run_in_executor(None, load)
