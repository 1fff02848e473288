"""``CoreStore``: the contract over SQLAlchemy Core.

A database's store says how a transaction is run, and takes over what it can say better by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from edda.errors import EddaError, StorageUnavailableError
from edda.storage.contract import HintListener
from edda.storage.core import (
    cancel,
    channels,
    instances,
    ownership,
    positions,
    queries,
    relay,
    retention,
    sessions,
    wakes,
)
from edda.storage.core import routing as routes
from edda.storage.core.traits import Traits
from edda.storage.migrations import check_schema, migrate_connection
from edda.storage.rows import (
    Chunk,
    EventRow,
    InstanceRow,
    Keeps,
    LiveVersion,
    NewInstance,
    OutboxMessage,
    Record,
    RelayOutcome,
    Routing,
    Shape,
    State,
    Sweep,
    SweepRow,
    Swept,
    TakenRows,
    Trigger,
    Turn,
    TurnResult,
)

log = logging.getLogger("edda.storage")

T = TypeVar("T")
Transaction = Callable[[sa.Connection], T]

_TRIES = 12

#: Alembic keeps the migration that runs in globals: one at a time in a process, whatever its threads and loops.
_MIGRATING = threading.Lock()


@contextlib.asynccontextmanager
async def one_migration() -> AsyncIterator[None]:
    """Around whatever calls ``migrate_connection``: two apps of a process may start at once on two databases."""
    # No asyncio.Event: that belongs to one loop, and these may be several.
    while not _MIGRATING.acquire(blocking=False):  # noqa: ASYNC110, see above
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _MIGRATING.release()


class TransientError(Exception):
    """Deadlock, serialisation failure, busy file: the transaction runs again as it is. Internal."""


class CoreStore:
    """All of ``contract.Storage`` that needs no database of its own."""

    dialect: str
    has_hints = False
    session_holds_writer = False

    def __init__(self, url: sa.URL, traits: Traits) -> None:
        self.url = url
        self.traits = traits
        self.clock_offset_us = 0
        self.statements = 0
        self.flushes = 0
        self.lease_us = 30_000_000

    def __repr__(self) -> str:
        """Without the password."""
        return f"<{type(self).__name__} {self.url.render_as_string(hide_password=True)}>"

    # ---------------------------------------------------------------- what each database says

    async def open(self, lease_us: int = 30_000_000) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def engine(self) -> AsyncEngine:
        raise NotImplementedError

    async def _once(self, work: Transaction[T], *, write: bool) -> T:
        """Run the work in one transaction and commit; errors as the driver raises them."""
        raise NotImplementedError

    def _classify(self, error: BaseException) -> BaseException | None:
        """TransientError, StorageUnavailableError or StorageDataError for a driver's error; None: it is ours."""
        raise NotImplementedError

    def is_transient(self, error: BaseException) -> bool:
        return isinstance(self._classify(error) or error, TransientError | StorageUnavailableError)

    async def _run(self, work: Transaction[T], *, write: bool = True) -> T:
        for attempt in range(_TRIES):
            try:
                return await self._once(work, write=write)
            except EddaError:
                raise
            except Exception as error:
                classified = self._classify(error)
                if classified is None:
                    raise
                if not isinstance(classified, TransientError):
                    raise classified from error
                log.debug("transaction_again", extra={"attempt": attempt, "error": str(error)})
                await asyncio.sleep(random.random() * 0.01 * 2 ** min(attempt, 6))  # noqa: S311, jitter
        msg = f"{self.dialect}: a transaction was refused {_TRIES} times for others' sake (deadlock, busy); try again"
        raise StorageUnavailableError(msg)

    def _now(self, c: sa.Connection) -> int:
        return self.traits.now(c) + self.clock_offset_us

    # ---------------------------------------------------------------- life

    async def migrate(self) -> None:
        async with one_migration():
            await self._run(lambda c: migrate_connection(c, self.traits.name))

    async def check_schema(self) -> None:
        """Raises SchemaError unless the schema is this version's."""
        await self._run(check_schema, write=False)

    # ---------------------------------------------------------------- routing

    async def routing(self) -> Routing:
        return await self._run(routes.routing, write=False)

    async def register_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        found = await self._run(lambda c: routes.find_shape(c, pattern, paths), write=False)
        if found is not None:
            return found
        return await self._run(lambda c: routes.register_shape(c, self.traits, pattern, paths))

    async def events_of_pattern(self, pattern: str, after: int, until: int, limit: int) -> list[EventRow]:
        return await self._run(
            lambda c: routes.events_of_pattern(c, pattern, after, until, limit), write=False
        )

    async def backfill(
        self, shape_id: int, keys: Sequence[tuple[bytes, str, int]], done: bool
    ) -> frozenset[str]:
        return await self._run(
            lambda c: routes.backfill(c, self.traits, shape_id, keys, self._now(c), done=done)
        )

    async def left_unmarked(self, limit: int = 100) -> list[bytes]:
        return await self._run(lambda c: wakes.left_unmarked(c, limit, self._now(c)), write=False)

    async def declare_triggers(self, triggers: Sequence[Trigger]) -> None:
        await self._run(lambda c: routes.declare_triggers(c, self.traits, triggers))

    # ---------------------------------------------------------------- channels

    async def join_channel(self, channel: str, mode: str) -> tuple[str, int]:
        return await self._run(lambda c: channels.join(c, self.traits, channel, mode))

    async def take_message_in_session(self, connection: AsyncConnection, channel: str) -> EventRow | int:
        return await connection.run_sync(lambda c: channels.take(c, self.traits, channel))

    # ---------------------------------------------------------------- users' sessions and new instances

    async def apply_in_session(self, connection: AsyncConnection, turn: Turn) -> TurnResult:
        return await connection.run_sync(lambda c: sessions.apply_turn(c, self.traits, turn, self._now(c)))

    async def record_fence(self, instance_id: str, seq: int) -> int | None:
        return await self._run(lambda c: sessions.record_fence(c, self.traits, instance_id, seq))

    async def enqueue_in_session(
        self, connection: AsyncConnection, messages: Sequence[OutboxMessage]
    ) -> None:
        await connection.run_sync(lambda c: sessions.enqueue(c, messages, self._now(c)))

    async def insert_instances_in_session(
        self, connection: AsyncConnection, new: Sequence[NewInstance]
    ) -> None:
        await connection.run_sync(lambda c: sessions.insert_instances(c, new, self._now(c)))

    async def insert_instances(self, new: Sequence[NewInstance]) -> list[bool]:
        return await self._run(lambda c: instances.insert_instances(c, self.traits, new, self._now(c)))

    # ---------------------------------------------------------------- ownership

    async def register_worker(self, worker: str, app: str, lease_us: int) -> None:
        await self._run(
            lambda c: ownership.register_worker(c, self.traits, worker, app, lease_us, self._now(c))
        )

    async def retire_worker(self, worker: str) -> int:
        return await self._run(lambda c: ownership.retire_worker(c, self.traits, worker, self._now(c)))

    async def requeue_expired(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        return await self._run(lambda c: ownership.requeue_expired(c, self.traits, limit, self._now(c)))

    async def resume(self, instance_id: str) -> str | None:
        return await self._run(lambda c: ownership.resume(c, self.traits, instance_id, self._now(c)))

    async def request_cancel(self, instance_id: str, detail: bytes) -> tuple[str, State] | None:
        return await self._run(
            lambda c: cancel.request_cancel(c, self.traits, instance_id, detail, self._now(c))
        )

    async def cancelling(self, worker: str) -> list[str]:
        return await self._run(lambda c: cancel.cancelling(c, worker), write=False)

    # ---------------------------------------------------------------- relay

    async def outbox_take(
        self, destination: str, owner: str, lease_us: int, limit: int, max_bytes: int
    ) -> TakenRows:
        return await self._run(
            lambda c: relay.take(c, self.traits, destination, owner, lease_us, limit, max_bytes, self._now(c))
        )

    async def outbox_settle(self, destination: str, owner: str, outcome: RelayOutcome) -> bool:
        return await self._run(
            lambda c: relay.settle(c, self.traits, destination, owner, outcome, self._now(c))
        )

    async def outbox_release(self, destination: str, owner: str) -> None:
        await self._run(lambda c: relay.release(c, destination, owner))

    # ---------------------------------------------------------------- retention

    async def declare_retention(self, app: str, keeps: Keeps | None) -> None:
        await self._run(lambda c: retention.declare(c, self.traits, app, keeps, self._now(c)))

    async def retention(self) -> dict[str, Keeps]:
        return await self._run(retention.declared, write=False)

    async def begin_sweep(self, owner: str, lease_us: int, every_us: int) -> Sweep | None:
        return await self._run(
            lambda c: retention.begin(c, self.traits, owner, lease_us, every_us, self._now(c))
        )

    async def sweep(self, sweep: Sweep | None, chunk: Chunk, lease_us: int) -> Swept | None:
        return await self._run(
            lambda c: retention.chunk(c, self.traits, sweep, chunk, lease_us, self._now(c)),
            write=sweep is not None,
        )

    async def end_sweep(self, sweep: Sweep, forget_us: int) -> None:
        await self._run(lambda c: retention.end(c, sweep, forget_us, self._now(c)))

    async def sweeps(self, limit: int = 20) -> list[SweepRow]:
        return await self._run(lambda c: retention.last_sweeps(c, limit), write=False)

    # ---------------------------------------------------------------- queries

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        return await self._run(lambda c: queries.get_instance(c, instance_id), write=False)

    async def find_instances(
        self,
        *,
        app: str | None = None,
        states: Sequence[State] = (),
        workflow_contains: str | None = None,
        id_contains: str | None = None,
        started_after: int | None = None,
        started_before: int | None = None,
        input_filters: Mapping[str, object] | None = None,
        where: Callable[[InstanceRow], bool] | None = None,
        limit: int = 50,
        before: tuple[int, str] | None = None,
    ) -> list[InstanceRow]:
        return await self._run(
            lambda c: queries.find_instances(
                c,
                self.traits,
                app=app,
                states=states,
                workflow_contains=workflow_contains,
                id_contains=id_contains,
                started_after=started_after,
                started_before=started_before,
                input_filters=input_filters,
                where=where,
                limit=limit,
                before=before,
            ),
            write=False,
        )

    async def get_history(self, instance_id: str) -> list[Record]:
        return await self._run(lambda c: queries.get_history(c, instance_id), write=False)

    async def source_positions(self, cluster: str, group: str) -> dict[tuple[str, int], int]:
        return await self._run(lambda c: positions.of_group(c, cluster, group), write=False)

    async def seek_source(
        self, cluster: str, group: str, topic: str, partition: int, next_offset: int
    ) -> None:
        await self._run(lambda c: positions.seek(c, cluster, group, topic, partition, next_offset))

    async def live_versions(self) -> list[LiveVersion]:
        return await self._run(queries.live_versions, write=False)

    async def counts(self) -> Mapping[str, int]:
        return await self._run(queries.counts, write=False)

    # ---------------------------------------------------------------- hints

    async def notify(self, hints: Sequence[str]) -> None:
        """Nobody listens."""

    @contextlib.asynccontextmanager
    async def listen(self, listener: HintListener) -> AsyncIterator[None]:  # noqa: ARG002
        """Nothing to hear."""
        yield
