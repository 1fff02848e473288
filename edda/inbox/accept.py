"""The accept transaction's driver.

Deliveries gather while one transaction is in flight, are bound to the routing table, accepted together, and answered
after the commit.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edda.cloudevent import CloudEvent
from edda.errors import (
    EddaError,
    PayloadError,
    StaleRoutingError,
    StorageDataError,
    StorageError,
    StorageUnavailableError,
)
from edda.inbox.binding import Table
from edda.storage.contract import Storage
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    EventResult,
    NewDeadLetter,
    NewEvent,
    PositionAdvance,
    Verdict,
)

log = logging.getLogger("edda.inbox")

#: Most events, and about most bytes, of one transaction.
MAX_EVENTS = 500
MAX_BYTES = 4 * 1024 * 1024

#: Events (and bytes) that may wait for their transaction; beyond that deliveries are refused, not piled up.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 64 * 1024 * 1024

#: What an event takes beside its data, roughly.
_OVERHEAD = 512


class OverloadedError(EddaError):
    """Too many deliveries wait for the database; nothing of this one was stored. Send it again later."""

    code = "EDDA401"


@dataclass(frozen=True, slots=True)
class Positioned:
    """An event of a source with positions.

    ``position`` is its place in the batch's list of advances. ``dead_letter`` makes, from a reason, what is kept of it
    if it is refused: its position goes on, so that it must not be lost.
    """

    event: CloudEvent
    position: int | None = None
    dead_letter: Callable[[str], NewDeadLetter] | None = None


Accepted = tuple[list[EventResult], dict[int, int]]


@dataclass(slots=True)
class _Waiting:
    """A delivery, or at most ``MAX_EVENTS`` of one."""

    items: list[Positioned]
    size: int
    since: float
    answer: asyncio.Future[list[EventResult]]


class Inbox:
    """The way in. One accept transaction is in flight at a time; what arrives meanwhile shares the next.

    ``patience``: seconds that a delivery waits for the database, all tries together.
    """

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
        self._table: Table | None = None
        self._queue: deque[_Waiting] = deque()
        self._waiting = 0
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._marking: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    async def deliver(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        """Accept events; what became of each, in order, after the commit.

        A cancelled caller's events are accepted all the same. More than ``MAX_EVENTS`` take several transactions.
        Raises OverloadedError (nothing stored) and StorageUnavailableError (the database did not answer within
        ``patience`` seconds: the outcome is unknown, send again; what is stored already is then a duplicate).
        """
        if not events:
            return []
        sizes = [_size(event) for event in events]
        if self._waiting and (
            self._waiting + len(events) > MAX_WAITING or self._waiting_bytes + sum(sizes) > MAX_WAITING_BYTES
        ):
            msg = (
                f"{self._waiting} events wait for the database already; nothing of this delivery of {len(events)} was "
                "stored. Send it again later."
            )
            raise OverloadedError(msg)
        answers = [self._hand_in(piece, size) for piece, size in _cut(events, sizes)]
        _, pending = await asyncio.wait(answers, timeout=self._patience)
        if pending:
            msg = (
                f"the database has not answered for {self._patience:g} s: whether these {len(events)} events are "
                "stored is unknown. Send them again; what is stored already is then reported as a duplicate."
            )
            raise StorageUnavailableError(msg)
        return [result for answer in answers for result in answer.result()]

    async def accept_batch(
        self,
        items: Sequence[Positioned],
        positions: Sequence[PositionAdvance] = (),
        poison: Sequence[NewDeadLetter] = (),
    ) -> Accepted:
        """One batch of a source with positions, in a transaction of its own; (results, stale positions).

        Only where the database refuses a member are others accepted before the positions go on.
        """
        async with self._lock:
            return await self._accept(list(items), tuple(positions), tuple(poison), self._now())

    async def positions(self, cluster: str, group: str) -> dict[tuple[str, int], int]:
        """Where each (topic, partition) of a source's group stands: the next offset to read."""
        return await self._store.source_positions(cluster, group)

    async def close(self) -> None:
        """Finish what was handed in; give up only what the database does not take within ``patience``."""
        while self._task is not None:
            await asyncio.wait([self._task])
            await asyncio.sleep(0)
        if self._marking:
            _, unfinished = await asyncio.wait(self._marking, timeout=self._patience)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # ------------------------------------------------------------------ the loop

    def _hand_in(self, events: Sequence[CloudEvent], size: int) -> asyncio.Future[list[EventResult]]:
        answer: asyncio.Future[list[EventResult]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting([Positioned(event) for event in events], size, self._now(), answer))
        self._waiting += len(events)
        self._waiting_bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        return answer

    async def _work(self) -> None:
        try:
            await asyncio.sleep(0)  # what arrives in the same tick shares the transaction
            while self._queue:
                async with self._lock:
                    await self._share_transaction(self._next_batch())
        finally:
            self._task = None

    async def _share_transaction(self, batch: list[_Waiting]) -> None:
        items = [item for waiting in batch for item in waiting.items]
        try:
            results, _ = await self._accept(items, (), (), batch[0].since)
        except Exception as error:  # noqa: BLE001, every caller hears of it
            for waiting in batch:
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # nobody may be there any more to hear it
            return
        at = 0
        for waiting in batch:
            waiting.answer.set_result(results[at : at + len(waiting.items)])
            at += len(waiting.items)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        events = size = 0
        while self._queue:
            waiting = self._queue[0]
            if batch and (events + len(waiting.items) > MAX_EVENTS or size + waiting.size > MAX_BYTES):
                break
            self._queue.popleft()
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
        since: float,
    ) -> Accepted:
        """All in one transaction, or, where the database refuses a member, all but that one."""
        try:
            return await self._transaction(items, positions, poison, since)
        except StorageDataError as error:
            if not items:
                raise
            log.warning("accept_halves_batch", extra={"events": len(items), "error": str(error)})
        # The events first, each piece a whole transaction of its own. Positions go on only when all are in: a crash in
        # between delivers them again, and then they are duplicates. The last transaction carries no event, so that what
        # is reported is what became of each when it was accepted.
        results = await self._pieces(items, since)
        letters = tuple(
            item.dead_letter(result.reason)
            for item, result in zip(items, results, strict=True)
            if result.verdict is Verdict.REFUSED and item.dead_letter is not None
        )
        stale: dict[int, int] = {}
        if positions or poison or letters:
            _, stale = await self._transaction([], positions, (*poison, *letters), since)
        return results, stale

    async def _pieces(self, items: list[Positioned], since: float) -> list[EventResult]:
        """Halve until the culprit is alone."""
        try:
            results, _ = await self._transaction([Positioned(item.event) for item in items], (), (), since)
        except StorageDataError as error:
            if len(items) == 1:
                return [EventResult(Verdict.REFUSED, reason=str(error))]
            half = len(items) // 2
            return await self._pieces(items[:half], since) + await self._pieces(items[half:], since)
        return results

    async def _transaction(
        self,
        items: list[Positioned],
        positions: tuple[PositionAdvance, ...],
        poison: tuple[NewDeadLetter, ...],
        since: float,
    ) -> Accepted:
        """One accept, sent again unchanged while its outcome is unknown, bound again when the routing has changed."""
        batch_id = os.urandom(16)
        pause = 0.05
        bound: _Bound | None = None
        while True:
            try:
                table = self._table or await self._read_table()
                bound = bound or _Bound(table, items)
                letters = (*poison, *bound.letters)
                if not (bound.rows or positions or letters):
                    return bound.results(()), {}
                result = await self._store.accept(
                    AcceptBatch(batch_id, table.version, bound.rows, letters, positions)
                )
            except StaleRoutingError:
                self._table = bound = None
            except StorageUnavailableError as error:
                if self._now() + pause > since + self._patience:
                    raise
                log.warning("accept_waits_for_database", extra={"events": len(items), "error": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                self._committed(result)
                return bound.results(result.results), result.stale

    async def _read_table(self) -> Table:
        self._table = Table(await self._store.routing())
        return self._table

    def _committed(self, result: AcceptResult) -> None:
        if result.woken_apps:
            self._on_woken(result.woken_apps)
        if result.more_hashes:
            task = asyncio.get_running_loop().create_task(self._mark_rest(result.more_hashes))
            self._marking.add(task)
            task.add_done_callback(self._marking.discard)

    async def _mark_rest(self, hashes: tuple[bytes, ...]) -> None:
        """The waits beyond the first thousand; repeatable, so that a failure is simply tried again."""
        pause = 0.05
        while True:
            try:
                apps, more = await self._store.mark_due(hashes)
            except StorageError as error:
                log.warning("marking_waits_for_database", extra={"error": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
                continue
            if apps:
                self._on_woken(apps)
            if not more:
                return


class _Bound:
    """A batch bound to the routing table: rows for what can be accepted, reasons for what cannot."""

    def __init__(self, table: Table, items: Sequence[Positioned]) -> None:
        self._refused: dict[int, str] = {}
        rows: list[NewEvent] = []
        letters: list[NewDeadLetter] = []
        for at, item in enumerate(items):
            try:
                rows.append(table.bind(item.event, item.position))
            except PayloadError as error:
                self._refused[at] = str(error)
                if item.dead_letter is not None:
                    letters.append(item.dead_letter(str(error)))
        self.rows = tuple(rows)
        self.letters = tuple(letters)
        self._size = len(items)

    def results(self, accepted: Sequence[EventResult]) -> list[EventResult]:
        """In the order of the batch."""
        following = iter(accepted)
        return [
            EventResult(Verdict.REFUSED, reason=self._refused[at]) if at in self._refused else next(following)
            for at in range(self._size)
        ]


def _cut(events: Sequence[CloudEvent], sizes: Sequence[int]) -> Iterator[tuple[list[CloudEvent], int]]:
    """Pieces that one transaction may hold (or one event that is larger), with their sizes."""
    piece: list[CloudEvent] = []
    total = 0
    for event, size in zip(events, sizes, strict=True):
        if piece and (len(piece) == MAX_EVENTS or total + size > MAX_BYTES):
            yield piece, total
            piece, total = [], 0
        piece.append(event)
        total += size
    yield piece, total


def _size(event: CloudEvent) -> int:
    texts = (event.id, event.source, event.type, event.subject or "", event.dataschema or "")
    extensions = sum(len(name) + len(str(value)) for name, value in event.extensions.items())
    return _OVERHEAD + len(event.data or b"") + sum(map(len, texts)) + extensions
