"""``MemoryStore``: each method a transaction on a copy of the tables, which replaces them if nothing was refused."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from edda.errors import ConfigurationError
from edda.storage import schema
from edda.storage.contract import HintListener
from edda.storage.memory import accept, outbox
from edda.storage.memory import retention as sweeping
from edda.storage.memory import turns as turn_of
from edda.storage.memory.tables import Instance, Tables, Wait, Worker, check_keys, check_text, view
from edda.storage.rows import (
    CANCEL_SEQ,
    ENDED,
    LEFT_AFTER_US,
    AcceptBatch,
    AcceptResult,
    Beat,
    Chunk,
    ClaimedInstance,
    EventRow,
    Expiring,
    FlushResult,
    InstanceRow,
    Keeps,
    LiveVersion,
    LoadedInstance,
    NewInstance,
    NewWait,
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
    WaitKind,
    WaitRow,
)

#: Dead workers without instances are kept for this long, so that a late heartbeat finds itself dead.
OLD_US = 3_600_000_000

_PATH = re.compile(r"[A-Za-z_][\w]*(\.[A-Za-z_][\w]*)*\Z")


class MemoryHeart:
    """Beats on the store itself."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        with self._store.transaction() as t:
            row = t.workers.get(worker)
            alive = row is not None and not row.dead
            if row is not None and alive:
                t.workers[worker] = replace(row, expires_at=t.now + lease_us)
            return _look_around(t, worker, app, alive=alive)

    async def close(self) -> None:
        """There is no connection."""


class MemoryStore:
    """``memory:``, each store by itself: two with the same URL share nothing."""

    dialect = "memory"
    has_hints = False
    session_holds_writer = False

    def __init__(self) -> None:
        self.clock_offset_us = 0
        self.statements = 0
        self.flushes = 0
        self._lock = threading.Lock()
        self._tables = Tables()

    @contextlib.contextmanager
    def transaction(self, *values: object) -> Iterator[Tables]:
        """Tables to write to; kept if the block ends without an error. ``values`` is what it wants to store."""
        check_text(values)
        with self._lock:
            self.statements += 1
            tables = self._tables.copy()
            tables.now = time.time_ns() // 1_000 + self.clock_offset_us
            yield tables
            self._tables = tables

    # ---------------------------------------------------------------- life

    async def open(self, lease_us: int = 30_000_000) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """Nothing is given up: a store that is opened again has what it had."""

    async def migrate(self) -> None:
        """There is no schema."""

    async def ping(self) -> None:
        with self.transaction():
            pass

    async def now(self) -> int:
        with self.transaction() as t:
            return t.now

    def engine(self) -> AsyncEngine:
        """There is none: raises ConfigurationError."""
        _no_session()

    # ---------------------------------------------------------------- accept

    async def routing(self) -> Routing:
        with self.transaction() as t:
            return Routing(t.version, tuple(t.shapes.values()), tuple(t.triggers.values()))

    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        with self.transaction(batch) as t:
            return accept.accept(t, batch)

    async def mark_due(self, hashes: Sequence[bytes], limit: int = 1000) -> tuple[frozenset[str], bool]:
        with self.transaction() as t:
            mine = [key for key, wait in t.waits.items() if wait.new.hash in hashes and not wait.due]
            found = sorted(key for key in mine if t.first_event(t.waits[key]))
            if len(found) <= limit:
                t.unmarked = {key: at for key, at in t.unmarked.items() if key[0] not in hashes}
            return frozenset(t.signal(found[:limit])), len(found) > limit

    async def left_unmarked(self, limit: int = 100) -> list[bytes]:
        with self.transaction() as t:
            old = sorted((at, *key) for key, at in t.unmarked.items() if at <= t.now - LEFT_AFTER_US)
            return list(dict.fromkeys(key for _, key, _ in old[:limit]))

    async def register_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        with self.transaction(pattern, paths) as t:
            for shape in t.shapes.values():
                if (shape.pattern, shape.paths) == (pattern, paths):
                    return shape
            shape = Shape(len(t.shapes) + 1, pattern, paths, t.last_seq == 0, t.last_seq)
            check_keys(shape, schema.shapes)
            t.shapes[shape.id] = shape
            t.version += 1
            return shape

    async def events_of_pattern(self, pattern: str, after: int, until: int, limit: int) -> list[EventRow]:
        with self.transaction() as t:
            fitting = [event for event in t.events.values() if _fits(pattern, event.type)]
            return [event for event in fitting if after < event.seq <= until][:limit]

    async def backfill(
        self, shape_id: int, keys: Sequence[tuple[bytes, str, int]], done: bool
    ) -> frozenset[str]:
        with self.transaction() as t:
            for key, addressee, seq in (one for one in keys if one[2] in t.events):
                t.keys[key] = t.keys.get(key, frozenset()) | {(addressee, seq)}
            if not done:
                return frozenset()
            t.shapes[shape_id] = replace(t.shapes[shape_id], ready=True, backfill_until=0)
            t.version += 1
            mine = [key for key, wait in t.waits.items() if wait.new.shape_id == shape_id and not wait.due]
            return frozenset(t.signal([key for key in mine if t.first_event(t.waits[key])]))

    async def declare_triggers(self, triggers: Sequence[Trigger]) -> None:
        with self.transaction(triggers) as t:
            new = {(one.app, one.workflow, one.pattern): one for one in triggers}
            t.version += any(t.triggers.get(key) != one for key, one in new.items())
            t.triggers |= new

    # ---------------------------------------------------------------- claim

    async def claim(
        self,
        app: str,
        workflows: Sequence[str],
        worker: str,
        limit: int,
        versions: Sequence[tuple[str, str]] = (),
    ) -> list[ClaimedInstance]:
        with self.transaction() as t:
            row = t.workers.get(worker)
            if row is None or row.dead:
                return []
            runnable = [
                one
                for one in t.instances.values()
                if one.state is State.RUNNABLE
                and one.new.app == app
                and one.new.workflow in workflows
                and (one.new.version is None or (one.new.workflow, one.new.version) in versions)
                and one.available_at <= t.now
            ]
            runnable.sort(key=lambda one: (-one.new.priority, one.available_at))
            return [
                _claimed(
                    t.update(
                        one.new.id, state=State.RUNNING, owner=worker, fence=one.fence + 1, updated_at=t.now
                    )
                )
                for one in runnable[: max(limit, 0)]
            ]

    async def owned(self, worker: str) -> list[ClaimedInstance]:
        with self.transaction() as t:
            return [_claimed(row) for row in t.instances.values() if row.owner == worker]

    async def load(self, instance_ids: Sequence[str], *, history: bool = True) -> dict[str, LoadedInstance]:
        with self.transaction() as t:
            loaded = {}
            for one in {one for one in instance_ids if one in t.instances}:
                records = [record for key, (_, record) in t.history.items() if history and key[0] == one]
                waits = [
                    view(
                        WaitRow,
                        wait,
                        wait.new,
                        deadline_us=wait.deadline,
                        event=t.first_event(wait) if wait.due else None,
                    )
                    for _, wait in t.waits_of(one)
                ]
                records.sort(key=lambda record: record.pos)
                loaded[one] = LoadedInstance(tuple(records), tuple(waits), t.instances[one].signals)
            return loaded

    # ---------------------------------------------------------------- turn

    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        self.flushes += 1
        with self.transaction(turns) as t:
            return turn_of.flush(t, turns)

    async def join_channel(self, channel: str, mode: str) -> tuple[str, int]:
        with self.transaction() as t:
            return t.channels.setdefault(channel, mode), t.last_seq

    async def take_message_in_session(self, connection: AsyncConnection, channel: str) -> EventRow | int:
        _no_session(connection, channel)

    async def apply_in_session(self, connection: AsyncConnection, turn: Turn) -> TurnResult:
        _no_session(connection, turn)

    async def record_fence(self, instance_id: str, seq: int) -> int | None:
        with self.transaction() as t:
            return t.history.get((instance_id, seq), (None, None))[0]

    def is_transient(self, error: BaseException) -> bool:
        """No: nothing here ever has to be tried again."""
        del error
        return False

    async def enqueue_in_session(
        self, connection: AsyncConnection, messages: Sequence[OutboxMessage]
    ) -> None:
        _no_session(connection, messages)

    async def insert_instances_in_session(
        self, connection: AsyncConnection, instances: Sequence[NewInstance]
    ) -> None:
        _no_session(connection, instances)

    async def insert_instances(self, instances: Sequence[NewInstance]) -> list[bool]:
        with self.transaction(instances) as t:
            return [t.insert(new) for new in instances]

    # ---------------------------------------------------------------- ownership

    def heart(self) -> MemoryHeart:
        return MemoryHeart(self)

    async def register_worker(self, worker: str, app: str, lease_us: int) -> None:
        with self.transaction(worker, app) as t:
            t.workers[worker] = Worker(app, t.now + lease_us)

    async def retire_worker(self, worker: str) -> int:
        with self.transaction() as t:
            if worker in t.workers:
                t.workers[worker] = replace(t.workers[worker], dead=True)
            return len(turn_of.give_back(t, [worker], None, recovered=False))

    async def requeue_expired(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        with self.transaction() as t:
            t.workers = {
                one: replace(row, dead=row.dead or row.expires_at < t.now) for one, row in t.workers.items()
            }
            dead = {one for one, row in t.workers.items() if row.dead}
            back = turn_of.give_back(t, dead, limit, recovered=True)
            for one in dead - {row.owner for row in t.instances.values()}:
                if t.workers[one].expires_at < t.now - OLD_US:
                    del t.workers[one]
            return frozenset(row.new.app for row in back), len(back)

    async def resume(self, instance_id: str) -> str | None:
        with self.transaction() as t:
            row = t.instances.get(instance_id)
            if row is None or row.state is not State.PAUSED:
                return None
            fence, at = row.fence + 1, {"available_at": t.now, "updated_at": t.now}
            return t.update(instance_id, state=State.RUNNABLE, fence=fence, error=None, **at).new.app

    async def request_cancel(self, instance_id: str, detail: bytes) -> tuple[str, State] | None:
        with self.transaction() as t:
            row = t.instances.get(instance_id)
            if row is None or row.state in ENDED:
                return None if row is None else (row.new.app, row.state)
            new = NewWait(CANCEL_SEQ, WaitKind.CANCEL, "cancel", detail=detail)
            t.waits.setdefault((instance_id, CANCEL_SEQ), Wait(new, row.chain, 0, None, due=True))
            changes: dict[str, Any] = {"signals": row.signals + 1, "updated_at": t.now}
            if row.state is not State.RUNNING:
                changes |= {"state": State.RUNNABLE, "available_at": t.now}
            if row.state is State.PAUSED:
                changes |= {"fence": row.fence + 1, "error": None}
            t.update(instance_id, **changes)
            return row.new.app, row.state

    async def cancelling(self, worker: str) -> list[str]:
        with self.transaction() as t:
            return sorted(
                one
                for one, row in t.instances.items()
                if row.owner == worker and (one, CANCEL_SEQ) in t.waits
            )

    async def fire_timers(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        with self.transaction() as t:
            passed = [
                key
                for key, wait in sorted(t.waits.items())
                if not wait.due and wait.deadline is not None and wait.deadline <= t.now
            ]
            return frozenset(t.signal(passed[:limit])), len(passed[:limit])

    async def poll(self, app: str) -> Beat:
        with self.transaction() as t:
            return _look_around(t, "", app, alive=True)

    # ---------------------------------------------------------------- relay

    async def outbox_take(
        self, destination: str, owner: str, lease_us: int, limit: int, max_bytes: int
    ) -> TakenRows:
        with self.transaction() as t:
            holder, expires_at = t.leases.get(destination, (owner, 0))
            if holder != owner and expires_at > t.now:
                return TakenRows(False, 0, (), expires_at - t.now)
            t.leases[destination] = owner, t.now + lease_us
            rows, later = outbox.take(t, destination, limit, max_bytes)
            return TakenRows(True, lease_us, tuple(rows), later)

    async def outbox_settle(self, destination: str, owner: str, outcome: RelayOutcome) -> bool:
        with self.transaction(outcome) as t:
            holder, _ = t.leases.get(destination, ("", 0))
            if holder != owner:
                return False
            outbox.settle(t, destination, outcome)
            return True

    async def outbox_release(self, destination: str, owner: str) -> None:
        with self.transaction() as t:
            if t.leases.get(destination, ("", 0))[0] == owner:
                del t.leases[destination]

    # ---------------------------------------------------------------- retention

    async def declare_retention(self, app: str, keeps: Keeps | None) -> None:
        with self.transaction(app) as t:
            t.keeps.pop(app, None)
            t.keeps |= {} if keeps is None else {app: keeps}

    async def retention(self) -> dict[str, Keeps]:
        with self.transaction() as t:
            return dict(sorted(t.keeps.items()))

    async def begin_sweep(self, owner: str, lease_us: int, every_us: int) -> Sweep | None:
        with self.transaction(owner) as t:
            return sweeping.begin(t, owner, lease_us, every_us)

    async def sweep(self, sweep: Sweep | None, chunk: Chunk, lease_us: int) -> Swept | None:
        with self.transaction() as t:
            return sweeping.sweep(t, sweep, chunk, lease_us)

    async def end_sweep(self, sweep: Sweep, forget_us: int) -> None:
        with self.transaction() as t:
            sweeping.end(t, sweep, forget_us)

    async def sweeps(self, limit: int = 20) -> list[SweepRow]:
        with self.transaction() as t:
            return [
                view(
                    SweepRow,
                    row,
                    id=one,
                    dead_letters=row.removed.get(Expiring.LETTERS, 0)
                    + row.removed.get(Expiring.DEAD_ROWS, 0),
                    **{
                        what: row.removed.get(Expiring(what), 0)
                        for what in ("events", "identities", "instances")
                    },
                )
                for one, row in sorted(t.sweeps.items(), reverse=True)[:limit]
            ]

    # ---------------------------------------------------------------- queries

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        with self.transaction() as t:
            row = t.instances.get(instance_id)
            return None if row is None else _shown(t, row)

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
        for path in input_filters or {}:
            if not _PATH.match(path):
                raise ConfigurationError(
                    f"input_filters: {path!r} is not a path; use names joined by dots, like 'order.customer_id'"
                )
        with self.transaction() as t:
            rows = [
                row
                for row in t.instances.values()
                if app in {None, row.new.app}
                and (not states or row.state in states)
                and (workflow_contains or "").lower() in row.new.workflow.lower()
                and (id_contains or "").lower() in row.new.id.lower()
                and (started_after is None or row.created_at >= started_after)
                and (started_before is None or row.created_at <= started_before)
                and (before is None or (row.created_at, row.new.id) < before)
                and _matches(row.new.input, input_filters or {})
                and (where is None or where(_shown(t, row)))
            ]
            rows.sort(key=lambda row: (row.created_at, row.new.id), reverse=True)
            return [_shown(t, row) for row in rows[:limit]]

    async def get_history(self, instance_id: str) -> list[Record]:
        loaded = await self.load([instance_id])
        return list(loaded[instance_id].history) if instance_id in loaded else []

    async def source_positions(self, cluster: str, group: str) -> dict[tuple[str, int], int]:
        with self.transaction() as t:
            return {key[2:]: offset for key, offset in t.positions.items() if key[:2] == (cluster, group)}

    async def seek_source(
        self, cluster: str, group: str, topic: str, partition: int, next_offset: int
    ) -> None:
        with self.transaction() as t:
            t.positions[cluster, group, topic, partition] = next_offset

    async def live_versions(self) -> list[LiveVersion]:
        with self.transaction() as t:
            live: dict[tuple[str, str, str], list[Instance]] = {}
            for one in t.instances.values():
                if one.state not in ENDED:
                    key = one.new.app, one.new.workflow, one.new.version or ""
                    live.setdefault(key, []).append(one)
            return sorted(
                LiveVersion(
                    *key,
                    len(some),
                    sum(one.state is State.PAUSED for one in some),
                    min(one.created_at for one in some),
                )
                for key, some in live.items()
            )

    async def counts(self) -> Mapping[str, int]:
        with self.transaction() as t:
            found = {
                "instances": len(t.instances),
                "history": len(t.history),
                "waits": len(t.waits),
                "events": len(t.events),
                "identities": len(t.identities),
                "event_keys": sum(map(len, t.keys.values())),
                "unmarked": len(t.unmarked),
                "shapes": len(t.shapes),
                "triggers": len(t.triggers),
                "accept": 1,
                "outbox": len(t.outbox),
                "relay_leases": len(t.leases),
                "dead_letters": len(t.letters),
                "channels": len(t.channels),
                "source_positions": len(t.positions),
                "workers": len(t.workers),
                "retention": len(t.keeps),
                "sweeps": len(t.sweeps),
            }
            states = [f"instances.{row.state}" for row in t.instances.values()]
            states += [f"outbox.{row.state}" for row in t.outbox.values()]
            return found | {state: states.count(state) for state in states}

    # ---------------------------------------------------------------- hints

    async def notify(self, hints: Sequence[str]) -> None:
        """Nobody listens."""

    @contextlib.asynccontextmanager
    async def listen(self, listener: HintListener) -> AsyncIterator[None]:
        """Nothing to hear."""
        del listener
        yield


# ---------------------------------------------------------------------------------------------- reading


def _no_session(*_: object) -> NoReturn:
    raise ConfigurationError(
        "memory: has no SQL, and so no sessions (ctx.session, engine()). Nothing was written. Use sqlite:// in its "
        "place, which is a database in a temporary file."
    )


def _claimed(row: Instance) -> ClaimedInstance:
    return view(ClaimedInstance, row, row.new)


def _shown(t: Tables, row: Instance) -> InstanceRow:
    kinds = [wait.new.kind for _, wait in t.waits_of(row.new.id)]
    return view(InstanceRow, row, row.new, wait_kinds=frozenset(kinds))


def _fits(pattern: str, event_type: str) -> bool:
    return pattern in {"*", event_type} or (pattern.endswith(".*") and event_type.startswith(pattern[:-1]))


def _matches(payload: bytes, filters: Mapping[str, object]) -> bool:
    try:
        document = from_json(payload) if filters else None
    except ValueError:
        return False
    for path, wanted in filters.items():
        value = document
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            return False
    return True


def _look_around(t: Tables, worker: str, app: str, *, alive: bool) -> Beat:
    available = [
        row.available_at for row in t.instances.values() if row.state is State.RUNNABLE and row.new.app == app
    ]
    foreign = [row.expires_at for one, row in t.workers.items() if one != worker and not row.dead]
    deadlines = [wait.deadline for wait in t.waits.values() if not wait.due and wait.deadline is not None]
    return Beat(
        alive,
        t.now,
        foreign_expiry_us=min(foreign, default=None),
        next_deadline_us=min(deadlines, default=None),
        runnable=any(at <= t.now for at in available),
        outbox=any(
            row.state == "pending" or (row.state == "retrying" and row.available_at <= t.now)
            for row in t.outbox.values()
        ),
        next_available_us=min((at for at in available if at > t.now), default=None),
        unmarked=any(at <= t.now - LEFT_AFTER_US for at in t.unmarked.values()),
    )
