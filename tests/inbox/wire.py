"""The line to a real store: counts what is sent, and loses what it is told to lose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edda.errors import StorageUnavailableError
from edda.storage.contract import Storage
from edda.storage.rows import AcceptBatch, AcceptResult


class Wire:
    """Everything goes to the store behind it; ``accept`` through here."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self.sent: list[AcceptBatch] = []
        self.lost_requests = 0  # so many more never reach the database
        self.lost_answers = 0  # so many more are committed, and nobody hears of it
        self.before: Callable[[], Any] | None = None  # awaited once, before the next request
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = asyncio.Event()  # a request stands before the closed line

    def __getattr__(self, name: str) -> Any:
        """The store's own."""
        return getattr(self._store, name)

    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        """Send it, or not."""
        self.sent.append(batch)
        if not self.open.is_set():
            self.waiting.set()
            await self.open.wait()
        if self.before is not None:
            before, self.before = self.before, None
            await before()
        if self.lost_requests:
            self.lost_requests -= 1
            raise StorageUnavailableError("the request was lost")
        result = await self._store.accept(batch)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StorageUnavailableError("the answer was lost")
        return result
