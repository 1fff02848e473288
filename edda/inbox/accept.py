"""The accept transaction's driver: deliveries gather while one is in flight, are bound to the routing table, accepted, and answered
after the commit.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edda.cloudevent import CloudEvent
from edda.errors import EddaError, StaleRoutingError, StorageDataError, StorageUnavailableError
from edda.inbox.shapes import event_hash, parsed_data, patterns_of
from edda.inbox.triggers import starts_of
from edda.storage.contract import Storage
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    EventResult,
    NewDeadLetter,
    NewEvent,
    PositionAdvance,
    Routing,
    Shape,
    Trigger,
    Verdict,
)

log = logging.getLogger("edda.inbox")

MAX_EVENTS = 500
MAX_BYTES = 4 * 1024 * 1024

#: Events (and bytes) that may wait for their transaction; beyond that deliveries are refused, not piled up.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024


class OverloadedError(EddaError):
    """Too many deliveries wait for the database; nothing of this one was stored. Send it again later."""

    code = "EDDA401"


@dataclass(frozen=True, slots=True)
class Positioned:
    """An event from a source with positions: ``position`` is its place in the batch's list of advances."""

    event: CloudEvent
    position: int | None = None


class _Table:
    """The routing table, by pattern."""

    def __init__(self, routing: Routing) -> None:
        self.version = routing.version
        self._shapes: dict[str, list[Shape]] = {}
        self._triggers: dict[str, list[Trigger]] = {}
        for shape in routing.shapes:
            self._shapes.setdefault(shape.pattern, []).append(shape)
        for trigger in routing.triggers:
            self._triggers.setdefault(trigger.pattern, []).append(trigger)

    def bind(self, item: Positioned) -> NewEvent:
        """All that the table says about an event. Pure."""
        event = item.event
        patterns = patterns_of(event.type)
        shapes = [shape for pattern in patterns for shape in self._shapes.get(pattern, ())]
        triggers = [trigger for pattern in patterns for trigger in self._triggers.get(pattern, ())]
        data = parsed_data(event) if shapes or triggers else None
        hashes = (event_hash(shape, event, data) for shape in shapes)
        addressee = event.extensions.get("eddainstanceid")
        return NewEvent(
            digest=event.digest(),
            data_hash=event.data_hash(),
            type=event.type,
            source=event.source,
            event_id=event.id,
            attributes=event.attributes_json(),
            data=event.data,
            content_type=event.datacontenttype,
            addressee=None if addressee is None else str(addressee)[:128],
            keys=tuple(found for found in hashes if found is not None),
            starts=starts_of(event, data, triggers),
            position=item.position,
        )


@dataclass(slots=True)
class _Waiting:
    items: list[Positioned]
    size: int
    answer: asyncio.Future[list[EventResult]]


class Inbox:
    """The way in. One accept transaction is in flight at a time; what arrives meanwhile shares the next."""

    def __init__(
        self,
        store: Storage,
        *,
        on_woken: Callable[[frozenset[str]], None] = lambda _: None,
        patience: float = 10.0,
    ) -> None:
        self._store = store
        self._on_woken = on_woken
        self._patience = patience
        self._table: _Table | None = None
        self._queue: list[_Waiting] = []
        self._waiting = 0
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    async def deliver(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        """Accept events; what became of each, in order, after the commit.

        A cancelled caller's events are accepted all the same. Raises OverloadedError (nothing stored) and StorageUnavailableError (the
        database did not answer within ``patience`` seconds: the outcome is unknown, send again).
        """
        if not events:
            return []
        size = sum(len(event.data or b"") + 512 for event in events)
        if self._waiting + len(events) > MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            if self._waiting:
                msg = f"{self._waiting} events wait for the database already; nothing of this delivery was stored, send it later"
                raise OverloadedError(msg)
        answer: asyncio.Future[list[EventResult]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting([Positioned(event) for event in events], size, answer))
        self._waiting += len(events)
        self._waiting_bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        return await asyncio.shield(answer)

    async def accept_batch(
        self,
        items: Sequence[Positioned],
        positions: Sequence[PositionAdvance] = (),
        poison: Sequence[NewDeadLetter] = (),
    ) -> tuple[list[EventResult], dict[int, int]]:
        """One batch of a source with positions, in a transaction of its own; (results, stale positions)."""
        async with self._lock:
            return await self._accept(list(items), tuple(positions), tuple(poison))

    async def close(self) -> None:
        """Finish what was handed in."""
        while self._task is not None:
            await asyncio.wait([self._task])
            await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ the loop

    async def _work(self) -> None:
        try:
            await asyncio.sleep(0)  # what arrives in the same tick shares the transaction
            while self._queue:
                batch = self._next_batch()
                items = [item for waiting in batch for item in waiting.items]
                try:
                    async with self._lock:
                        results, _ = await self._accept(items, (), ())
                except Exception as error:  # noqa: BLE001, every caller hears of it
                    for waiting in batch:
                        if not waiting.answer.done():
                            waiting.answer.set_exception(error)
                            waiting.answer.exception()
                    continue
                at = 0
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_result(results[at : at + len(waiting.items)])
                    at += len(waiting.items)
        finally:
            self._task = None

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        events = size = 0
        while self._queue and (
            not batch or (events + len(self._queue[0].items) <= MAX_EVENTS and size < MAX_BYTES)
        ):
            waiting = self._queue.pop(0)
            batch.append(waiting)
            events += len(waiting.items)
            size += waiting.size
        self._waiting -= events
        self._waiting_bytes -= size
        return batch

    # ------------------------------------------------------------------ one batch

    async def _accept(
        self,
        items: list[Positioned],
        positions: tuple[PositionAdvance, ...],
        poison: tuple[NewDeadLetter, ...],
    ) -> tuple[list[EventResult], dict[int, int]]:
        batch_id = os.urandom(16)
        deadline = asyncio.get_running_loop().time() + self._patience
        pause = 0.05
        rows: tuple[NewEvent, ...] | None = None
        while True:
            try:
                table = self._table or await self._read_table()
                if rows is None:
                    rows = tuple(table.bind(item) for item in items)
                result = await self._store.accept(
                    AcceptBatch(batch_id, table.version, rows, poison, positions)
                )
            except StaleRoutingError:
                self._table, rows = None, None
            except StorageDataError as error:
                return await self._halve(items, positions, poison, error)
            except StorageUnavailableError as error:
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise
                log.warning("accept_waits_for_database", extra={"events": len(items), "error": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                self._committed(result)
                return list(result.results), result.stale

    async def _halve(
        self,
        items: list[Positioned],
        positions: tuple[PositionAdvance, ...],
        poison: tuple[NewDeadLetter, ...],
        error: StorageDataError,
    ) -> tuple[list[EventResult], dict[int, int]]:
        """Find the member that the database refuses. Positions and poison go with the last piece, when all others are in."""
        if len(items) <= 1:
            if not items or positions or poison:
                if not items:
                    raise error
                await self._accept([], positions, poison)
            return [EventResult(Verdict.REFUSED, reason=str(error))], {}
        half = len(items) // 2
        if positions:
            # All in one transaction or none: a position must not advance over events that are not in.
            good = [item for item in items if not await self._is_refused(item)]
            bad = [item for item in items if item not in good]
            results, stale = await self._accept(good, positions, poison)
            answers = dict(zip(map(id, good), results, strict=True))
            refused = EventResult(Verdict.REFUSED, reason=str(error))
            return [answers.get(id(item), refused) for item in items] if bad else results, stale
        left, _ = await self._accept(items[:half], (), ())
        right, stale = await self._accept(items[half:], (), poison)
        return left + right, stale

    async def _is_refused(self, item: Positioned) -> bool:
        """Whether the database refuses this event by itself; if not, it is in already (and a duplicate later)."""
        results, _ = await self._accept([replace(item, position=None)], (), ())
        return results[0].verdict is Verdict.REFUSED

    async def _read_table(self) -> _Table:
        self._table = _Table(await self._store.routing())
        return self._table

    def _committed(self, result: AcceptResult) -> None:
        if result.woken_apps:
            self._on_woken(result.woken_apps)
        if result.more_hashes:
            task = asyncio.get_running_loop().create_task(self._mark_rest(result.more_hashes))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _mark_rest(self, hashes: tuple[bytes, ...]) -> None:
        more = True
        while more:
            try:
                apps, more = await self._store.mark_due(hashes)
            except StorageUnavailableError:
                await asyncio.sleep(0.5)
                continue
            if apps:
                self._on_woken(apps)
