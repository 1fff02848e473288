"""The relay: take rows under the destination's lease, publish them, inspect every confirm, write the results at once.

Nothing is published later than the lease's end minus the publish timeout, by the monotonic clock: a relay that was
stopped and wakes up finds that its time is over. A lost confirm is unknown, not failed: published again with the same
(source, id).
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, EddaError, StorageError, StorageUnavailableError
from edda.storage.contract import Storage
from edda.storage.rows import OutboxRow, RelayOutcome, TakenRows
from outbox_relays.ordering import lanes
from outbox_relays.publisher import Confirm, Confirmed, Outgoing, Permanent, Publisher, Retry
from outbox_relays.retry import Backoff

log = logging.getLogger("edda.relay")

_REASON_LENGTH = 2_000

#: Seconds after which a round starts no more publishes, so that no long lane keeps the others' next rows waiting.
_ROUND = 1.0

#: Seconds between two looks, however often it is kicked, while another relay leads.
_FOLLOWING = 1.0

#: Longest rest of the whole destination; then one round finds out whether it takes messages again.
_LONGEST_REST = 60.0


@dataclass(slots=True)
class _Round:
    """What became of the rows so far."""

    last_start: float
    confirmed: list[int] = field(default_factory=list)
    failed: list[tuple[int, int, str]] = field(default_factory=list)
    dead: list[tuple[int, str]] = field(default_factory=list)
    parked: list[int] = field(default_factory=list)
    rest: Retry | None = None  # the destination takes nothing now

    def outcome(self) -> RelayOutcome:
        return RelayOutcome(tuple(self.confirmed), tuple(self.failed), tuple(self.dead), tuple(self.parked))


class Relay:
    """One per destination and process; the lease lets one of them lead. Idle, it sends no statement: ``kick`` wakes it.

    Args:
        store: Where the outbox is.
        publisher: Where its rows go.
        owner: Its name in the lease; new per process.
        lease_seconds: After which another relay takes over from one that died; at least twice the publish timeout.
        batch: Rows of one round at most.
        max_bytes: Bytes of data of one round at most (or one row).
        backoff: How long failed rows wait.
        on_work: Called when there were rows.
    """

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
        on_work: Callable[[], None] = lambda: None,
    ) -> None:
        if lease_seconds < 2 * publisher.publish_timeout:
            msg = (
                f"relay {publisher.destination!r}: lease_seconds={lease_seconds:g} leaves no time to publish; it must "
                f"be at least twice the publish timeout, {2 * publisher.publish_timeout:g}"
            )
            raise ConfigurationError(msg)
        self._store = store
        self._publisher = publisher
        self._owner = owner or f"relay-{uuid.uuid4().hex[:16]}"
        self._lease_seconds = lease_seconds
        self._batch = batch
        self._max_bytes = max_bytes
        self._backoff = backoff or Backoff()
        self._on_work = on_work
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._deaf_until = 0.0
        self._rests = 0
        self.destination = publisher.destination
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
        """Start no more publishes, finish those in flight, write the results, give the lease back."""
        self._stop.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._publisher.publish_timeout + 5)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._publisher.close()

    async def _run(self) -> None:
        pause = 0.05
        delay: float | None = None
        while True:
            await self._until_news(delay)
            if self._stop.is_set():
                break
            try:
                delay = await self._rounds()
                pause = 0.05
            except Exception as error:  # whatever it is, the rows are still there and are taken again
                self.last_error = str(error)
                level = logging.WARNING if isinstance(error, StorageUnavailableError) else logging.ERROR
                unexpected = None if isinstance(error, EddaError) else error
                extra = {"destination": self._publisher.destination, "error": str(error)}
                log.log(level, "relay_tries_again", exc_info=unexpected, extra=extra)
                self._deaf_until = time.monotonic() + pause
                delay, pause = pause, min(pause * 2, 5.0)
        try:
            await self._store.outbox_release(self._publisher.destination, self._owner)
        except StorageError as error:
            log.debug("relay_lease_not_released", extra={"error": str(error)})

    async def _until_news(self, delay: float | None) -> None:
        """Until a kick or the delay's end; kicks are not heard before ``_deaf_until``."""
        deaf = self._deaf_until - time.monotonic()
        if deaf > 0 and delay is not None:
            await _within(min(deaf, delay), self._stop)
            delay -= min(deaf, delay)
        await _within(delay, self._wake)
        self._wake.clear()

    async def _rounds(self) -> float | None:
        """Work until nothing is left to take; seconds until something may be (None: until a kick)."""
        while not self._stop.is_set():
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
                self._deaf_until = time.monotonic() + _FOLLOWING
                return 0.05 + (taken.next_available_us or 0) / 1_000_000
            if not taken.rows:
                if taken.next_available_us is not None:
                    return max(0.01, taken.next_available_us / 1_000_000)
                # Idle: without a lease anybody may be first when the next row comes.
                await self._store.outbox_release(self._publisher.destination, self._owner)
                return None
            self._on_work()
            rest = await self._round(taken, asked)
            if rest is not None:
                self._deaf_until = time.monotonic() + rest
                return rest
        return None

    async def _round(self, taken: TakenRows, asked: float) -> float | None:
        """Publish and settle; seconds that the whole destination is to be left alone."""
        # Counted from before the statement was sent: the lease began later than that, never earlier.
        lease_ends = asked + taken.lease_us / 1_000_000
        last_start = min(lease_ends - self._publisher.publish_timeout, time.monotonic() + _ROUND)
        done = _Round(last_start)
        queue = lanes(taken.rows)
        waiting = iter(queue)

        async def work() -> None:
            for lane in waiting:
                await self._lane(lane, done)

        await asyncio.gather(*(work() for _ in range(min(self._publisher.concurrency, len(queue)))))
        await self._settle(done.outcome(), lease_ends)
        if done.rest is None:
            self._rests = 0
            return None
        rest = min(self._backoff.delay(self._rests, done.rest.after), _LONGEST_REST)
        self._rests += 1
        log.warning(
            "relay_rests",
            extra={"destination": self._publisher.destination, "seconds": rest, "reason": done.rest.reason},
        )
        return rest

    async def _settle(self, outcome: RelayOutcome, lease_ends: float) -> None:
        pause = 0.05
        while True:
            try:
                held = await self._store.outbox_settle(self._publisher.destination, self._owner, outcome)
            except StorageUnavailableError:
                if time.monotonic() > lease_ends:
                    raise  # the rows go out again, with the same identity
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                if held:
                    self.published += len(outcome.confirmed)
                else:
                    log.warning("relay_lease_lost", extra={"destination": self._publisher.destination})
                return

    async def _lane(self, lane: Sequence[OutboxRow], done: _Round) -> None:
        at = 0
        while at < len(lane):
            if time.monotonic() >= done.last_start or done.rest is not None or self._stop.is_set():
                return  # neither confirmed nor failed: it is taken again
            for confirm in await self._publish(lane[at : at + self._publisher.lane_batch]):
                if not isinstance(confirm, Confirmed):
                    self._not_confirmed(lane[at], confirm, done)
                    done.parked.extend(behind.id for behind in lane[at + 1 :])
                    return
                done.confirmed.append(lane[at].id)
                at += 1

    async def _publish(self, rows: Sequence[OutboxRow]) -> Sequence[Confirm]:
        """What became of them, as far as it goes; of one at least."""
        messages: list[Outgoing] = []
        for row in rows:
            try:
                messages.append(Outgoing(event_of(row), row.ordering_key))
            except EddaError as error:
                if not messages:
                    return [Permanent(f"the row holds no event: {error}")]
                break
        try:
            async with asyncio.timeout(self._publisher.publish_timeout):
                return await self._publisher.publish(messages)
        except TimeoutError:
            return [Retry(f"no confirm within {self._publisher.publish_timeout:g} s")]
        except Exception as error:  # a publisher's own fault must not stop the other keys
            log.exception("publisher_failed", extra={"destination": self._publisher.destination})
            return [Retry(f"{type(error).__name__}: {error}")]

    def _not_confirmed(self, row: OutboxRow, confirm: Retry | Permanent, done: _Round) -> None:
        # What the other side says may be anything, and is stored as text.
        reason = "".join(char if char.isprintable() else " " for char in confirm.reason[:_REASON_LENGTH])
        self.last_error = reason
        if isinstance(confirm, Retry) and confirm.everything:
            done.rest = confirm
        attempts = row.attempts + 1
        spent = self._backoff.max_attempts is not None and attempts >= self._backoff.max_attempts
        if isinstance(confirm, Permanent) or spent:
            log.error("outbox_row_dead", extra={"row": row.id, "event_id": row.event_id, "reason": reason})
            done.dead.append((row.id, reason))
            return
        delay = self._backoff.delay(row.attempts, confirm.after)
        log.warning("outbox_row_retried", extra={"row": row.id, "attempts": attempts, "reason": reason})
        done.failed.append((row.id, int(delay * 1_000_000), reason))


def event_of(row: OutboxRow) -> CloudEvent:
    """The event of a row, with the row's number as its ``sequence``, unless it came with one.

    Consumers can tell a late repeat by it. Source: the "sequence" extension of CloudEvents.
    """
    return CloudEvent.from_parts(
        row.type,
        row.source,
        row.event_id,
        row.attributes,
        row.data,
        row.content_type,
        defaults={"sequence": f"{row.id:020d}"},
    )


async def _within(seconds: float | None, event: asyncio.Event) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
