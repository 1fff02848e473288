"""What a database must do for Edda: the contract that four stores keep and one conformance suite checks.

Every mutating method is ONE transaction and a function of its input: it may be called again with the same input
after ``StorageUnavailableError`` (outcome unknown) and then changes nothing twice. Deadlocks, serialisation
failures and busy files are retried inside the store. ``StorageDataError`` means: a value of the batch cannot be
stored and nothing was written; the caller halves the batch.

Isolation is READ COMMITTED, set by the store (SQLite: BEGIN IMMEDIATE). What must be seen after waiting for a
lock is read in a later statement. Lock order everywhere: accept lock -> source positions (sorted) -> identities
(sorted by digest) -> instances (sorted by id) -> waits, events, outbox, workers.

"now" is the database's clock plus ``clock_offset_us``, read once per transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    Beat,
    Chunk,
    ClaimedInstance,
    EventRow,
    FlushResult,
    InstanceRow,
    Keeps,
    LiveVersion,
    LoadedInstance,
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

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

#: Called (in the event loop) with a hint that another process committed something: "run:<app>" or "outbox".
HintListener = Callable[[str], None]


class Heart(Protocol):
    """A connection of its own for the lease thread; used only inside that thread's event loop."""

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        """THE housekeeping statement: renew this worker's row unless it is dead, and look around.

        One statement (SQLite, MySQL: at most three in one go). ``UPDATE edda_workers SET expires_at = now + lease_us
        WHERE id = worker AND NOT dead``; zero rows -> ``alive`` False. Reconnects by itself on the next call.
        """
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Storage(Protocol):
    """One database. Opened and closed in one event loop; methods may be called concurrently."""

    dialect: str  # "sqlite" | "postgresql" | "mysql" | "memory"
    clock_offset_us: int  # 0 outside tests
    has_hints: bool  # True: ``listen`` works across processes (PostgreSQL)
    session_holds_writer: bool  # True: an open user transaction blocks every other writer (SQLite)
    statements: int  # statements (or transactions of the SQLite writer) sent so far by this store; for tests
    flushes: int  # calls of ``flush`` that reached the database so far

    # ---------------------------------------------------------------- life

    async def open(self, lease_us: int = 30_000_000) -> None:
        """Connect, check durability settings (log a warning naming the setting), set session timeouts <= lease/2.

        Raises StorageUnavailableError when the database does not answer; the app waits and tries again.
        """
        ...

    async def close(self) -> None:
        """Close every connection. Safe to call twice."""
        ...

    async def migrate(self) -> None:
        """Bring the schema up to date under a lock; ten processes may call it at once."""
        ...

    async def ping(self) -> None:
        """One trivial statement; for /readyz. Raises StorageUnavailableError."""
        ...

    async def now(self) -> int:
        """The database's time in microseconds (plus the offset)."""
        ...

    def engine(self) -> AsyncEngine:
        """The SQLAlchemy engine for users' sessions (``ctx.session``) and for cold queries; made on first use.

        READ COMMITTED; on SQLite every transaction is BEGIN IMMEDIATE.
        """
        ...

    # ---------------------------------------------------------------- accept

    async def routing(self) -> Routing:
        """Shapes and triggers at one version (one transaction)."""
        ...

    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        """Make a batch of events durable and wake what waits for them.

        Under the accept lock, exclusive:
        (1) routing version differs -> StaleRoutingError, nothing written;
        (2) positions by compare-and-set (no row yet: inserted); events and poison of a stale position are left out;
        (3) identities inserted, never SELECT-then-INSERT; ours are those that this call inserted or that carry this
        ``batch_id`` already (those are reported ACCEPTED again, nothing else is done for them); others are DUPLICATE
        or, with another data_hash, CONFLICT. Two equal digests inside one batch: the first wins. An identity or a dead
        letter of this ``batch_id`` makes the call a repeat after an unknown commit: positions of the batch that stand
        at their next_offset are not stale then;
        (4) events get the next accept sequence numbers in batch order; accepted_at = max(now, last accepted_at);
        one edda_event_keys row per key; addressee: the chain of the addressed instance (unknown id: the id itself; an
        ended instance: stored without waking, verdict UNMATCHED);
        (5) waits of kind event, not due, whose hash is one of the keys and (addressee '' or equal to the wait's
        chain): their instances are locked in id order, then the waits marked due, instances' signals + 1, waiting ->
        runnable with available_at now. At most 1,000 waits here; for the rest (hash, seq of the last event) is left in
        ``edda_unmarked`` and the hash reported in ``more_hashes``, by a repeat as long as it is there;
        (6) ``starts`` are inserted with start_event = the event's seq and chain_started_at = now (unless they say
        another); a taken id or live_key starts nothing (the event is ACCEPTED all the same: the trigger took it);
        (7) poison into dead letters, once by batch_id and number in the batch; a repeat adds none. COMMIT.

        EventResult.waits/starts count what this event woke (best effort beyond the first thousand).
        ``woken_apps``: apps of instances signalled (also those that are owned and running: their owner must look) or
        started. The same holds for the apps that mark_due, backfill, fire_timers return. What the first try of a
        repeated batch has woken is not known any more: then the apps of all live workers are among them.
        """
        ...

    async def source_positions(self, cluster: str, group: str) -> dict[tuple[str, int], int]:
        """Where each (topic, partition) of a group stands: the next offset to read. Those never read are absent."""
        ...

    async def seek_source(
        self, cluster: str, group: str, topic: str, partition: int, next_offset: int
    ) -> None:
        """An operator's word: go on from there, whatever has been read. Batches in flight find themselves stale."""
        ...

    async def mark_due(self, hashes: Sequence[bytes], limit: int = 1000) -> tuple[frozenset[str], bool]:
        """Mark waits due that have an unreceived event in these hashes; repeatable by anyone, order does not matter.

        As step 5 of accept, for at most ``limit`` waits, shape ready, with an event key seq > cursor (and != skip, and
        addressed to nobody or the chain). Returns (apps woken, whether more remain). If none remain, the rows of
        ``edda_unmarked`` that the hashes had at its beginning are deleted, last; a row that an accept adds meanwhile
        stays.
        """
        ...

    async def left_unmarked(self, limit: int = 100) -> list[bytes]:
        """Hashes for which an accept left waits to be marked at least ``LEFT_AFTER_US`` ago, the oldest first.

        For ``mark_due``, by anyone: the process that accepted their events has probably died.
        """
        ...

    async def register_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        """The shape, inserted if it is new: filling, or born ready where no event was accepted yet (last_seq = 0).

        Under the accept lock, exclusive: backfill_until = last accept sequence, routing version + 1. An existing shape
        is returned as it is without the lock.
        """
        ...

    async def events_of_pattern(self, pattern: str, after: int, until: int, limit: int) -> list[EventRow]:
        """Retained events whose type fits the pattern, after < seq <= until, in seq order; for backfill."""
        ...

    async def backfill(
        self, shape_id: int, keys: Sequence[tuple[bytes, str, int]], done: bool
    ) -> frozenset[str]:
        """Insert (hash, addressee or '', seq) rows, ignoring those that exist. Returns apps woken.

        Keys of events that are gone by then are left out, under the locks of the others.

        With ``done``: mark the shape ready (routing version + 1, accept lock exclusive) and mark due every wait of the
        shape that has an unreceived event (instances as in accept step 5).
        """
        ...

    async def declare_triggers(self, triggers: Sequence[Trigger]) -> None:
        """Insert or update by (app, workflow, pattern); routing version + 1 only if something changed. Accept lock."""
        ...

    async def join_channel(self, channel: str, mode: str) -> tuple[str, int]:
        """The channel's mode (this one, if nobody has joined it yet), and the last accept sequence."""
        ...

    async def take_message_in_session(self, connection: AsyncConnection, channel: str) -> EventRow | int:
        """On an open transaction: the first unaddressed message behind the channel's position, which moves there.

        Locks the channel, so that two who take at once get different messages, in accept order; nobody's if the
        transaction is rolled back. The position, where nothing is behind it.
        """
        ...

    # ---------------------------------------------------------------- claim

    async def claim(
        self,
        app: str,
        workflows: Sequence[str],
        worker: str,
        limit: int,
        versions: Sequence[tuple[str, str]] = (),
    ) -> list[ClaimedInstance]:
        """Own up to ``limit`` runnable instances: state running, owner, fence + 1, updated_at now.

        By priority (high first) and available_at, only available_at <= now, only this app and these workflow names, and
        of instances with a version only those whose (workflow, version) is among ``versions``; skipping rows locked by
        others. Only if the worker's row is alive (else: empty list).
        """
        ...

    async def owned(self, worker: str) -> list[ClaimedInstance]:
        """What this worker owns now (state running), as claimed; for a claim whose answer was lost.

        Waits for the worker's row: the server may still be busy with a claim whose connection is lost.
        """
        ...

    async def load(self, instance_ids: Sequence[str], *, history: bool = True) -> dict[str, LoadedInstance]:
        """In statements after the claim's (or the flush's): signals first, then history, then waits with events.

        For a due event wait on a ready shape, ``event`` is the first with its hash, addressed to nobody or its chain,
        seq > cursor, seq != skip. ``history=False`` leaves the history empty (the owner has it).
        """
        ...

    # ---------------------------------------------------------------- turn

    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        """Apply the turns of different instances in one transaction; no bad member fails its neighbours.

        At most one turn per instance. If any turn registers an event wait, parks an instance that has event waits, or
        has ``unread``, the accept lock is taken shared, first. Then:
        (0) ``start`` rows are inserted unless id or live_key is taken (born running, fence 1, owner = turn.owner,
        signals 0);
        (1) the instance rows are locked in id order and compared: fence and owner equal -> ours. Owner NULL and fence
        equal and the turn has a release (and no ``start``: that may be an older instance of the same id) -> it was
        applied by an earlier try (APPLIED, nothing touched). Else LOST (EXISTS if the turn has ``start``);
        (2) a turn with records whose first record's (instance, seq) exists with the same fence was applied by an
        earlier try: nothing of its records, waits, outbox, children is written again, its release is re-evaluated;
        with another fence: LOST. A later record that exists while the first does not: StorageDataError;
        (3) records (recorded_at as given, else now), waits (replaced by key; due = false), drop_waits deleted, outbox
        rows (available_at = now, state pending), children (unless taken);
        (4) release: END -> applied only if signals equal turn.signals: state, output, error, ended_at, owner NULL,
        live_key NULL, its waits deleted, updated_at, then ``successor`` inserted (unless taken); else KEPT. With
        ``unread`` and no successor a later statement looks for the first event key with this hash, addressed to nobody,
        seq > after and not among the received: if there is one, KEPT with that event. END with end_state PAUSED keeps
        waits and live_key, sets owner NULL and is unconditional.
        PARK -> if signals differ: KEPT. Else, in a later statement, every wait of the instance is looked at: has it
        (kind event, shape ready) an unreceived event, or its deadline passed -> due (and KEPT); other event waits are
        not due any more. No wait due: owner NULL, state waiting. YIELD -> runnable, owner NULL, available_at now,
        unconditional.
        Event waits that are registered by a turn whose instance stays with its owner (KEEP, or KEPT by signals or
        ``unread``; not YIELD: its next owner looks when it parks) are looked at, too: due at once if an event is there
        (a deadline alone is left to fire_timers); then the result is KEPT (= load me), so that the owner needs no other
        look.
        ``reset_recoveries`` sets recoveries 0.
        """
        ...

    async def apply_in_session(self, connection: AsyncConnection, turn: Turn) -> TurnResult:
        """The same for one turn without waits and release, on the user's own open transaction (not committed here).

        Lock and compare the instance row, insert records, outbox rows and children. LOST or a record that exists
        already leaves the transaction to be rolled back by the caller.
        """
        ...

    async def record_fence(self, instance_id: str, seq: int) -> int | None:
        """The fence that record (instance, seq) was written under, or None; resolves an unknown commit.

        Waits for the instance's row: the server may still be busy with a commit whose connection is lost.
        """
        ...

    def is_transient(self, error: BaseException) -> bool:
        """Whether a driver's (or our) error only says "not now": deadlock, serialisation, busy, connection lost.

        The user's transaction that met it was rolled back, and may be run again as it is.
        """
        ...

    async def enqueue_in_session(
        self, connection: AsyncConnection, messages: Sequence[OutboxMessage]
    ) -> None:
        """Insert outbox rows on the user's own open transaction (also a sync one, through run_sync)."""
        ...

    async def insert_instances_in_session(
        self, connection: AsyncConnection, instances: Sequence[NewInstance]
    ) -> None:
        """Insert unowned instances on the user's own open transaction. Raises InstanceExistsError."""
        ...

    async def insert_instances(self, instances: Sequence[NewInstance]) -> list[bool]:
        """Insert unowned instances; False where id or live_key was taken."""
        ...

    # ---------------------------------------------------------------- ownership

    def heart(self) -> Heart:
        """A new heart for the lease thread."""
        ...

    async def register_worker(self, worker: str, app: str, lease_us: int) -> None:
        """Insert the worker's row: expires_at = now + lease."""
        ...

    async def retire_worker(self, worker: str) -> int:
        """Clean shutdown: the worker is dead from now on and its instances go back at once. Returns how many.

        They are runnable, fence + 1, recoveries unchanged.
        """
        ...

    async def requeue_expired(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        """Take back what dead workers own. Returns (apps woken, number re-queued).

        Workers with expires_at < now are declared dead first (``WHERE NOT dead AND expires_at < now``); then, in the
        same transaction, up to ``limit`` instances owned by dead workers: owner NULL, runnable, fence + 1,
        recoveries + 1. Old dead rows without instances are removed.
        """
        ...

    async def resume(self, instance_id: str) -> str | None:
        """A paused instance becomes runnable: fence + 1, error NULL, available_at now. Its app; None: not paused."""
        ...

    async def request_cancel(self, instance_id: str, detail: bytes) -> tuple[str, State] | None:
        """Ask the owner to cancel; (app, state before). None: no such instance. Of an ended one nothing changes.

        A wait of kind cancel, number 0, is inserted due (the first request's ``detail`` stays) and signals + 1. What
        waits, is paused (fence + 1, error NULL) or is runnable becomes runnable with available_at now.
        """
        ...

    async def cancelling(self, worker: str) -> list[str]:
        """Instances that this worker owns and somebody wants cancelled."""
        ...

    async def fire_timers(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        """Mark waits due whose deadline has come. Returns (apps woken, number of waits fired).

        Of waits not due with deadline <= now: lock their instances in id order, mark due, signals + 1, waiting ->
        runnable. Repeatable by anyone.
        """
        ...

    async def poll(self, app: str) -> Beat:
        """The look-around part of ``Heart.beat`` without renewal: ONE statement for the adaptive poll."""
        ...

    # ---------------------------------------------------------------- relay

    async def outbox_take(
        self, destination: str, owner: str, lease_us: int, limit: int, max_bytes: int
    ) -> TakenRows:
        """Take or renew the relay lease of the destination (free, expired, or already ours), then read rows.

        First retrying rows with available_at <= now, then pending ones in id order, ``limit`` together, at most
        ``max_bytes`` of data (at least one row). Of one ordering key: the rows in id order, and nothing behind a row
        that is retrying later, parked or dead: what stands there among these becomes parked (and if it was all of them,
        next_available_us is 0: what comes behind them is to be had at once). Not held by us ->
        TakenRows(held=False).
        """
        ...

    async def outbox_settle(self, destination: str, owner: str, outcome: RelayOutcome) -> bool:
        """Write the results of a round unless another has taken the lease (lock, compare owners); False: none written.

        confirmed: rows deleted, and parked rows of their ordering keys become pending again unless a retrying or dead
        row of that key remains. failed: state retrying, attempts + 1, available_at = now + delay, reason. dead: state
        dead, attempts + 1, reason (rows of its ordering key stay behind it until it is replayed or discarded). parked:
        state parked. Behind a failed or dead row of a key, pending rows of that key become parked.
        """
        ...

    async def outbox_release(self, destination: str, owner: str) -> None:
        """Give the relay lease back."""
        ...

    # ---------------------------------------------------------------- retention

    async def declare_retention(self, app: str, keeps: Keeps | None) -> None:
        """What this app keeps from now on; None: there is no such app any more, and its word counts no longer."""
        ...

    async def retention(self) -> dict[str, Keeps]:
        """What each app keeps."""
        ...

    async def begin_sweep(self, owner: str, lease_us: int, every_us: int) -> Sweep | None:
        """The right to sweep for ``lease_us``; each chunk renews it. ``owner`` is new for each call, but for a repeat.

        None: another has it, or the last that was ended began less than ``every_us`` ago. One whose right has run out
        is ended.
        """
        ...

    async def sweep(self, sweep: Sweep | None, chunk: Chunk, lease_us: int) -> Swept | None:
        """Remove a chunk, under the sweep's right; None, and nothing removed: it has lost it.

        Without ``sweep`` (with ``dry_run`` only) nobody is kept from sweeping. Never removed, whatever the age:

        EVENTS that are addressed to a chain that lives, whose keys are the live key of an instance, or that an event
        wait of an instance that is runnable, running or paused has not received (as ``load`` would find it; an instance
        that waits has received all it could, but for hashes in ``edda_unmarked``, which are kept, too). While a wait
        stands on a shape that is filling, none. The keys of an event go with it.
        IDENTITIES whose event is there. They are as old as the first sweep that began with them.
        INSTANCES that have not ended or whose chain, parent or child lives. Their histories go with them; in one
        transaction all of an instance or none of it, and few if they have many records.
        DEAD_ROWS free what is parked behind them.
        """
        ...

    async def end_sweep(self, sweep: Sweep, forget_us: int) -> None:
        """Give the right back. Sweeps older than ``forget_us`` are forgotten, but for the newest of these."""
        ...

    async def sweeps(self, limit: int = 20) -> list[SweepRow]:
        """The last ones, the newest first."""
        ...

    # ---------------------------------------------------------------- queries (once, in SQLAlchemy Core)

    async def get_instance(self, instance_id: str) -> InstanceRow | None:
        """One instance with the kinds of its waits."""
        ...

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
        """Newest first by (created_at, id); ``before`` is where the last page ended. Partial matches ignore case."""
        ...

    async def get_history(self, instance_id: str) -> list[Record]:
        """All records in pos order."""
        ...

    async def live_versions(self) -> list[LiveVersion]:
        """What has not ended, by app, workflow and version (none first), in this order."""
        ...

    async def counts(self) -> Mapping[str, int]:
        """Rows by table (without the prefix), and "outbox.dead", "instances.<state>"; for demos, tests and doctor."""
        ...

    # ---------------------------------------------------------------- hints

    async def notify(self, hints: Sequence[str]) -> None:
        """Tell other processes after the commit ("run:<app>", "outbox"). No-op where ``has_hints`` is False."""
        ...

    def listen(self, listener: HintListener) -> AbstractAsyncContextManager[None]:
        """Hear other processes' hints while the context is open; reconnects by itself. No-op without hints."""
        ...


__all__ = ["Heart", "HintListener", "Storage"]
