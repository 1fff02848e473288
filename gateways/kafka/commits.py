"""Offsets committed in Kafka: a courtesy to those who look at the group there. The truth is in the database."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

log = logging.getLogger("edda.gateway.kafka")

_EVERY = 1.0


class Commits:
    """At most one a second, beside the reading; what it is told meanwhile goes with the next."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._noted: dict[Any, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._committed_at = 0.0

    def note(self, place: Any, next_offset: int) -> None:
        """Accepted up to there."""
        self._noted[place] = next_offset

    def soon(self) -> None:
        """Commit, unless that was done just now."""
        if not self._noted or time.monotonic() - self._committed_at < _EVERY:
            return
        if self._task is None or self._task.done():
            self._committed_at = time.monotonic()
            self._task = asyncio.get_running_loop().create_task(self._commit())

    async def last(self) -> None:
        """Commit what is left."""
        if self._task is not None:
            await self._task
        await self._commit()

    async def _commit(self) -> None:
        from aiokafka.errors import KafkaError

        assigned = self._consumer.assignment()
        offsets = {place: offset for place, offset in self._noted.items() if place in assigned}
        self._noted.clear()
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except (
            KafkaError
        ) as error:  # a rebalance, usually: the next owner reads the position from the database
            log.debug("kafka_offsets_not_committed", extra={"error": f"{type(error).__name__}: {error}"})
