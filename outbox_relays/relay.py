"""The relay: take rows under the destination's lease, publish them, inspect every confirm, write the results in one transaction.

Nothing is published later than the lease's end minus the publish timeout, by the monotonic clock: a relay that was stopped and wakes up
finds that its time is over. A lost confirm is unknown, not failed: published again with the same (source, id).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, StorageError, StorageUnavailableError
from edda.storage.contract import Storage
from edda.storage.rows import OutboxRow, RelayOutcome, TakenRows
from outbox_relays.ordering import lanes
from outbox_relays.publisher import Confirm, Confirmed, Permanent, Publisher, Retry
from outbox_relays.retry import Backoff

log = logging.getLogger("edda.relay")

_REASON_LENGTH = 2_000


@dataclass(slots=True)
class _Round:
    """What became of the rows so far."""

    confirmed: list[int] = field(default_factory=list)
    failed: list[tuple[int, int, str]] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    parked: list[int] = field(default_factory=list)

    def outcome(self) -> RelayOutcome:
        return RelayOutcome(tuple(self.confirmed), tuple(self.failed), tuple(self.dead), tuple(self.parked))


class Relay:
    """One per destination and process; the lease lets one of them lead. Idle, it sends no statement: ``kick`` wakes it."""

    def __init__(
        self,
        store: Storage,
        publisher: Publisher,
        *,
        owner: str | None = None,
        lease_seconds: float = 30.0,
        batch: int = 500,
        max_bytes: int = 8 * 1024 * 1024,
        backoff: Backoff | None = None,
    ) -> None:
        if lease_seconds < 2 * publisher.publish_timeout:
            msg = (
                f"relay {publisher.destination!r}: lease_seconds={lease_seconds:g} leaves no time to publish; it must be at least twice "
                f"the publish timeout, {2 * publisher.publish_timeout:g}"
            )
            raise ConfigurationError(msg)
        self._store = store
        self._publisher = publisher
        self._owner = owner or f"relay-{uuid.uuid4().hex[:16]}"
        self._lease_seconds = lease_seconds
        self._batch = batch
        self._max_bytes = max_bytes
        self._backoff = backoff or Backoff()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.published = 0
        self.last_error: str | None = None

    async def start(self) -> None:
        """Begin; rows that wait already are taken at once."""
        await self._publisher.open()
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def kick(self) -> None:
        """There may be rows."""
        self._wake.set()

    async def stop(self) -> None:
        """Finish the round, write its results, give the lease back."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._publisher.publish_timeout + 5)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._publisher.close()

    async def _run(self) -> None:
        pause = 0.05
        delay: float | None = None
        while not self._stopping:
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                delay = await self._rounds()
                pause = 0.05
            except StorageUnavailableError as error:
                log.warning(
                    "relay_waits_for_database",
                    extra={"destination": self._publisher.destination, "error": str(error)},
                )
                delay, pause = pause, min(pause * 2, 5.0)
        try:
            await self._store.outbox_release(self._publisher.destination, self._owner)
        except StorageError as error:
            log.debug("relay_lease_not_released", extra={"error": str(error)})

    async def _rounds(self) -> float | None:
        """Work until nothing is left to take; seconds until something may be (None: until a kick)."""
        while not self._stopping:
            asked = time.monotonic()
            taken = await self._store.outbox_take(
                self._publisher.destination,
                self._owner,
                int(self._lease_seconds * 1_000_000),
                self._batch,
                self._max_bytes,
            )
            if not taken.held:
                # Another relay leads; look when its lease ends, whether it was renewed.
                return 0.05 + (taken.next_available_us or 0) / 1_000_000
            if not taken.rows:
                if taken.next_available_us is not None:
                    return max(0.01, taken.next_available_us / 1_000_000)
                # Idle: without a lease anybody may be first when the next row comes.
                await self._store.outbox_release(self._publisher.destination, self._owner)
                return None
            await self._round(taken, asked)
        return None

    async def _round(self, taken: TakenRows, asked: float) -> None:
        # Counted from before the statement was sent: the lease began later than that, never earlier.
        last_start = asked + taken.lease_us / 1_000_000 - self._publisher.publish_timeout
        done = _Round()
        queue = lanes(taken.rows)
        workers = min(self._publisher.concurrency, len(queue))
        waiting = iter(queue)

        async def work() -> None:
            for lane in waiting:
                await self._lane(lane, done, last_start)

        await asyncio.gather(*(work() for _ in range(workers)))
        self.published += len(done.confirmed)
        outcome = done.outcome()
        pause = 0.05
        while True:
            try:
                held = await self._store.outbox_settle(self._publisher.destination, self._owner, outcome)
            except StorageUnavailableError:
                if time.monotonic() > asked + taken.lease_us / 1_000_000:
                    raise  # the lease is over; the rows go out again, with the same identity
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                if not held:
                    log.warning("relay_lease_lost", extra={"destination": self._publisher.destination})
                return

    async def _lane(self, lane: Sequence[OutboxRow], done: _Round, last_start: float) -> None:
        for at, row in enumerate(lane):
            if time.monotonic() >= last_start:
                return  # neither confirmed nor failed: it is taken again, under a new lease
            confirm = await self._publish(row)
            if isinstance(confirm, Confirmed):
                done.confirmed.append(row.id)
                continue
            self._not_confirmed(row, confirm, done)
            done.parked.extend(behind.id for behind in lane[at + 1 :])
            return

    async def _publish(self, row: OutboxRow) -> Confirm:
        event = CloudEvent.from_parts(
            row.type, row.source, row.event_id, row.attributes, row.data, row.content_type
        )
        if "sequence" not in event.extensions:
            # Consumers can tell a late repeat by it. Source: CloudEvents "sequence" extension.
            event = replace(event, extensions={**event.extensions, "sequence": f"{row.id:020d}"})
        try:
            async with asyncio.timeout(self._publisher.publish_timeout):
                return await self._publisher.publish(event)
        except TimeoutError:
            return Retry(f"no confirm within {self._publisher.publish_timeout:g} s")
        except Exception as error:  # a publisher's own fault must not stop the other keys
            log.exception("publisher_failed", extra={"destination": self._publisher.destination})
            return Retry(f"{type(error).__name__}: {error}")

    def _not_confirmed(self, row: OutboxRow, confirm: Retry | Permanent, done: _Round) -> None:
        reason = confirm.reason[:_REASON_LENGTH]
        self.last_error = reason
        attempts = row.attempts + 1
        spent = self._backoff.max_attempts is not None and attempts >= self._backoff.max_attempts
        if isinstance(confirm, Permanent) or spent:
            log.error("outbox_row_dead", extra={"row": row.id, "event_id": row.event_id, "reason": reason})
            done.dead.append((row.id, reason))
            return
        delay = self._backoff.delay(row.attempts, confirm.after)
        log.warning("outbox_row_retried", extra={"row": row.id, "attempts": attempts, "reason": reason})
        done.failed.append((row.id, int(delay * 1_000_000), reason))
