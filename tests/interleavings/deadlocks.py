"""Counting deadlocks, also those that the database resolved and the store ran again: lock order promises none."""

import logging

from edda.storage.contract import Storage
from tests.interleavings.raw import Raw
from tests.support.eventually import eventually


class Deadlocks(logging.Handler):
    """Hears what the stores say; asks PostgreSQL, which counts by itself."""

    def __init__(self, raw: Raw) -> None:
        super().__init__()
        self._raw = raw
        self.heard: list[str] = []
        self.again = 0  # transactions that were run again, for whatever reason

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "transaction_again":
            self.again += 1
            text = str(getattr(record, "error", ""))
            # On SQLite every refusal counts: there is nothing to wait for in the middle of a transaction.
            if "deadlock" in text.lower() or self._raw.kind == "sqlite":
                self.heard.append(text)

    async def count(self, *stores: Storage) -> int:
        """How many there were; closes the stores first, for a connection reports when it ends."""
        for store in stores:
            await store.close()
        if self._raw.kind != "postgresql":
            return len(self.heard)

        async def all_gone() -> bool:
            return await self._raw.other_connections() == 0

        await eventually(all_gone)
        return await self._raw.deadlocks()
