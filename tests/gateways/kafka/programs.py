"""A gateway in a process of its own, which stops itself where the test wants it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from edda.inbox.accept import Accepted, Inbox, Positioned
from edda.storage.connect import open_store
from edda.storage.rows import NewDeadLetter, PositionAdvance
from gateways.kafka import KafkaGateway


class _Stopping(Inbox):
    """Freezes the process (SIGSTOP) right before the first accept of events, or right after its commit."""

    where = ""

    async def accept_batch(
        self,
        items: Sequence[Positioned],
        positions: Sequence[PositionAdvance] = (),
        poison: Sequence[NewDeadLetter] = (),
    ) -> Accepted:
        if not items:
            return await super().accept_batch(items, positions, poison)
        self._freeze("before")
        results, stale = await super().accept_batch(items, positions, poison)
        print(f"accepted {len(items)}, stale {len(stale)}", flush=True)
        self._freeze("after")
        return results, stale

    def _freeze(self, where: str) -> None:
        if self.where == where:
            self.where = ""
            print("frozen", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)


async def gateway(database_url: str, bootstrap: str, topic: str, group: str, freeze: str) -> None:
    """Reads until it is killed."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
    store = open_store(database_url)
    await store.open()
    inbox = _Stopping(store)
    inbox.where = freeze
    await KafkaGateway(bootstrap, [topic], group, session_timeout=2.0).start(inbox)
    await asyncio.Event().wait()
