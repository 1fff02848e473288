"""The rows that cross the storage contract: frozen facts, no behaviour.

Times are whole microseconds since 1970 UTC, always by the database's clock plus the store's
``clock_offset_us`` (0 outside tests). ``seq`` of a record or wait is the number of the command in its
instance; ``seq`` of an event is its accept sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class State(StrEnum):
    """Where an instance stands; stored as text in ``edda_instances.state``."""

    RUNNABLE = "runnable"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RECURRED = "recurred"
    DEAD = "dead"


#: States that an instance never leaves; ``live_key`` is NULL in them.
ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.RECURRED, State.DEAD})


#: States in which what is addressed to an instance is for nobody any more. A run that has recurred is followed by one.
DEAF = ENDED - {State.RECURRED}


class WaitKind(StrEnum):
    """What a wait row waits for."""

    EVENT = "event"
    TIMER = "timer"
    RETRY = "retry"
    CHILD = "child"
    CANCEL = "cancel"  # number 0: somebody wants it cancelled; always due
    COMPENSATING = "compensating"  # number -1: never due; says that its code has ended and is being undone


#: Numbers of waits that no command has.
CANCEL_SEQ, COMPENSATING_SEQ = 0, -1


# ---------------------------------------------------------------------------------------------- instances


@dataclass(frozen=True, slots=True)
class NewInstance:
    """An instance to insert.

    With ``owner`` it is born ``running`` with fence 1 (its starter runs it at once); without, it is born
    ``runnable`` with fence 0, available ``delay_us`` from now. ``live_key`` and ``id`` are unique: if either is
    taken the row is not inserted, and the result says so.
    """

    id: str
    app: str
    workflow: str
    input: bytes
    owner: str | None = None
    chain: str = ""  # root id through recur; "" means its own id
    version: str | None = None
    live_key: bytes | None = None
    priority: int = 0
    delay_us: int = 0
    parent: str | None = None
    parent_seq: int | None = None
    chain_started_at: int | None = None  # None: now
    carried: bytes | None = None
    start_event: int = 0  # accept sequence of the event that starts it; accept sets it itself


@dataclass(frozen=True, slots=True)
class ClaimedInstance:
    """An instance this worker owns now, as the claim left it."""

    id: str
    app: str
    workflow: str
    version: str | None
    fence: int
    signals: int
    chain: str
    chain_started_at: int
    created_at: int
    start_event: int  # accept sequence of the event that started it, 0 if none
    recoveries: int  # re-queues since the last applied turn
    input: bytes
    carried: bytes | None
    live_key: bytes | None  # of a run that is the only one for its key


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """An instance as queries show it."""

    id: str
    app: str
    workflow: str
    version: str | None
    state: State
    owner: str | None
    fence: int
    signals: int
    chain: str
    priority: int
    recoveries: int
    created_at: int
    updated_at: int
    ended_at: int | None
    input: bytes
    output: bytes | None
    output_type: str | None
    error: bytes | None
    wait_kinds: frozenset[WaitKind] = frozenset()  # of one that has not ended
    carried: bytes | None = None


@dataclass(frozen=True, slots=True, order=True)
class LiveVersion:
    """Instances of one workflow and version that have not ended. ``version`` "": they were started without one."""

    app: str
    workflow: str
    version: str
    instances: int
    paused: int  # of those
    oldest_at: int  # when the oldest was started


# ---------------------------------------------------------------------------------------------- history


@dataclass(frozen=True, slots=True)
class Record:
    """One fact in an instance's history. ``pos`` is the order in which results were observed."""

    seq: int
    pos: int
    kind: str
    name: str
    payload: bytes
    content_type: str | None = None  # None: JSON
    args_hash: bytes | None = None  # 16 bytes
    recorded_at: int = 0  # when its owner observed it, by the database's clock; 0: the store sets its now


@dataclass(frozen=True, slots=True)
class NewWait:
    """A wait to register, or to replace: (instance, seq) is its key.

    Deadline: ``delay_us`` from the flush's now if given, else ``deadline_us``, else none.
    An event wait sees events whose key row has its ``hash``, addressed to nobody or to its chain, with
    seq > ``cursor``, seq != ``skip``, and accepted at or after ``since_us`` (the store turns ``since_us`` into a
    cursor once, when it registers the wait: cursor = max(cursor, last seq accepted before since_us)).
    """

    seq: int
    kind: WaitKind
    name: str
    hash: bytes | None = None
    shape_id: int | None = None
    cursor: int = 0
    since_us: int | None = None
    skip: int = 0
    delay_us: int | None = None
    deadline_us: int | None = None
    detail: bytes | None = None


@dataclass(frozen=True, slots=True)
class EventRow:
    """An accepted event, or a channel message."""

    seq: int
    type: str
    source: str
    event_id: str
    attributes: bytes  # JSON object: every other attribute and extension
    data: bytes | None
    content_type: str | None
    addressee: str | None
    accepted_at: int


@dataclass(frozen=True, slots=True)
class WaitRow:
    """A registered wait as ``load`` finds it.

    ``event`` is the first unreceived event in accept order; it is looked up only if the wait is due, of kind
    event, and its shape is ready.
    """

    seq: int
    kind: WaitKind
    name: str
    hash: bytes | None
    cursor: int
    deadline_us: int | None
    due: bool
    detail: bytes | None
    event: EventRow | None = None


@dataclass(frozen=True, slots=True)
class LoadedInstance:
    """What the owner needs to run: its whole history in ``pos`` order, its waits in ``seq`` order."""

    history: tuple[Record, ...]
    waits: tuple[WaitRow, ...]
    signals: int


# ---------------------------------------------------------------------------------------------- turns


class Release(IntEnum):
    """How a turn ends the ownership. Conditional on ``signals`` being the number the owner has seen."""

    KEEP = 0
    PARK = 1  # owner NULL; waiting (KEPT instead if any of its waits is due)
    END = 2  # owner NULL; final state, output or error; waits deleted, live_key NULL
    YIELD = 3  # owner NULL; runnable again (graceful shutdown), whatever ``signals`` says


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """An event on its way out. ``(source, event_id)`` stays the same however often it is published."""

    type: str
    source: str
    event_id: str
    attributes: bytes  # JSON object, as in EventRow
    data: bytes | None
    content_type: str | None
    destination: str = "default"
    ordering_key: str | None = None
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """What the end of a keyed run must not leave behind: events with this key, but for those that its chain received.

    A trigger of policy "key" makes the live key also a key of the event (``NewEvent.keys``), so that they are found.
    """

    hash: bytes  # the live key
    after: int  # the event that started the run
    received: frozenset[int] = frozenset()


@dataclass(slots=True)
class Turn:
    """One merged entry per instance and flush. Applied as a whole or not at all."""

    instance_id: str
    owner: str
    fence: int
    signals: int  # as the owner has seen it
    start: NewInstance | None = None  # the instance itself, inserted by this turn (fence is 1)
    records: list[Record] = field(default_factory=list)
    waits: list[NewWait] = field(default_factory=list)
    drop_waits: list[int] = field(default_factory=list)
    outbox: list[OutboxMessage] = field(default_factory=list)
    children: list[NewInstance] = field(default_factory=list)
    reset_recoveries: bool = False
    release: Release = Release.KEEP
    end_state: State | None = None  # for END, and PAUSED
    output: bytes | None = None
    output_type: str | None = None
    error: bytes | None = None
    unread: Unread | None = None  # for END: KEPT, with the event, if there is one
    successor: NewInstance | None = (
        None  # for END: inserted if and only if it is applied, when live_key is free
    )


class Applied(IntEnum):
    """What became of a turn."""

    APPLIED = 1  # written; released if it asked for it
    KEPT = 2  # written, but not released: news came (signals) or a wait is due at once. Load, then go on.
    LOST = 3  # not written: another fence. Drop the run.
    EXISTS = 4  # not written: the instance to start exists already (id or live_key taken)


@dataclass(frozen=True, slots=True)
class TurnResult:
    """``signals`` as the row has it now.

    ``unread``: the event for which an END was KEPT; end again, with a successor for it.
    """

    applied: Applied
    signals: int
    unread: EventRow | None = None


@dataclass(frozen=True, slots=True)
class FlushResult:
    """Results in the order of the turns; ``now_us`` is the flush's one time, also its ``recorded_at``.

    ``other_apps``: apps for which a runnable child instance was inserted (hint for a NOTIFY).
    """

    now_us: int
    results: tuple[TurnResult, ...]


# ---------------------------------------------------------------------------------------------- accept


@dataclass(frozen=True, slots=True)
class PositionAdvance:
    """Compare-and-set of one source position: applied only if ``fetched_from`` is what is stored (or none is)."""

    cluster: str
    group: str
    topic: str
    partition: int
    fetched_from: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to accept, with all that the routing table said about it."""

    digest: bytes  # sha256(len(source) . source . id)
    data_hash: bytes  # sha256 of type, attributes and data: same digest with another hash is a conflict
    type: str
    source: str
    event_id: str
    attributes: bytes
    data: bytes | None
    content_type: str | None
    addressee: str | None = None  # an instance id, as the sender gave it
    keys: tuple[bytes, ...] = ()  # one hash per shape that fits
    starts: tuple[NewInstance, ...] = ()  # what triggers start; start_event is set by the store
    position: int | None = None  # index into AcceptBatch.positions


@dataclass(frozen=True, slots=True)
class NewDeadLetter:
    """A delivery that can never become an event, kept whole; once per batch and place in it."""

    origin: str  # e.g. "kafka:orders/3@15", "http"
    raw: bytes
    headers: bytes  # JSON list of [name, base64 value]
    reason: str
    attempts: int = 1
    position: int | None = None


@dataclass(frozen=True, slots=True)
class AcceptBatch:
    """Input of the accept transaction; the same batch may be sent again after an unknown commit."""

    batch_id: bytes  # 16 random bytes
    routing_version: int
    events: tuple[NewEvent, ...]
    poison: tuple[NewDeadLetter, ...] = ()
    positions: tuple[PositionAdvance, ...] = ()


class Verdict(StrEnum):
    """What became of one event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"  # same (source, id) as an earlier event, other content: not stored, counted
    UNMATCHED = "unmatched"  # stored, but nobody waits for it, and no trigger takes it
    REFUSED = "refused"  # not storable; the reason is in EventResult.reason
    STALE_POSITION = "stale_position"  # its partition's position was not the one fetched from; not stored


@dataclass(frozen=True, slots=True)
class EventResult:
    """``seq`` is the accept sequence (also of the first copy, for a duplicate)."""

    verdict: Verdict
    seq: int = 0
    waits: int = 0
    starts: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AcceptResult:
    """Results in the order of the events.

    ``woken_apps``: apps of instances that were signalled or started; of a repeat those of all live workers, who alone
    could hear of it. ``more_hashes``: waits beyond the first thousand matched; call ``mark_due`` with them until it
    returns no more (others do after ``LEFT_AFTER_US``). ``stale``: index in ``positions`` -> stored offset.
    """

    results: tuple[EventResult, ...]
    woken_apps: frozenset[str]
    more_hashes: tuple[bytes, ...] = ()
    stale: dict[int, int] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- routing


@dataclass(frozen=True, slots=True)
class Shape:
    """What to hash events for: a type pattern and the paths whose values a keyed wait compares."""

    id: int
    pattern: str  # an exact type, or a prefix with a trailing ".*", or "*"
    paths: tuple[str, ...]  # sorted; empty for an unkeyed wait
    ready: bool
    backfill_until: int  # last accept sequence that must be backfilled


@dataclass(frozen=True, slots=True)
class Trigger:
    """Rule: events of this type start that workflow."""

    app: str
    workflow: str
    pattern: str
    key_path: str | None = None
    version: str | None = None
    policy: str = "event"  # "event": one run per event; "key": at most one live run per key value


@dataclass(frozen=True, slots=True)
class Routing:
    """Shapes and triggers at one version; read together."""

    version: int
    shapes: tuple[Shape, ...]
    triggers: tuple[Trigger, ...]


# ---------------------------------------------------------------------------------------------- workers

#: Microseconds that the process that accepted has to mark the waits beyond the first thousand, before others do.
LEFT_AFTER_US = 5_000_000


@dataclass(frozen=True, slots=True)
class Beat:
    """Answer of the one housekeeping statement."""

    alive: bool  # False: this worker was declared dead (or is unknown): stop all work, take a new id
    now_us: int
    foreign_expiry_us: int | None  # earliest lease end of another live worker
    next_deadline_us: int | None  # earliest deadline of a wait that is not due yet
    runnable: bool  # runnable instances of this app wait (available now)
    outbox: bool  # outbox rows wait to be taken now, or a relay lease expired with rows pending
    next_available_us: int | None = (
        None  # earliest available_at in the future of a runnable instance of this app
    )
    unmarked: bool = False  # an accept has left waits to be marked, and nobody has: see ``left_unmarked``


# ---------------------------------------------------------------------------------------------- relay


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row to publish. ``id`` rises with the order of causally ordered transactions."""

    id: int
    type: str
    source: str
    event_id: str
    attributes: bytes
    data: bytes | None
    content_type: str | None
    ordering_key: str | None
    attempts: int
    created_at: int


@dataclass(frozen=True, slots=True)
class TakenRows:
    """``lease_us`` microseconds of lease are left.

    ``held`` False: another relay leads, for at most ``next_available_us`` longer.
    """

    held: bool
    lease_us: int
    rows: tuple[OutboxRow, ...]
    next_available_us: int | None  # when the earliest retry is due, relative to now


@dataclass(frozen=True, slots=True)
class RelayOutcome:
    """Results of one round of publishing, written in one transaction.

    ``failed``: (row id, delay_us, reason). ``dead``: (row id, reason). ``parked``: rows that were taken, but stand
    behind an unconfirmed row of their ordering key.
    """

    confirmed: tuple[int, ...] = ()
    failed: tuple[tuple[int, int, str], ...] = ()
    dead: tuple[tuple[int, str], ...] = ()
    parked: tuple[int, ...] = ()


# ---------------------------------------------------------------------------------------------- retention


@dataclass(frozen=True, slots=True)
class Keeps:
    """How long an app keeps what, in microseconds; None: for ever. Instances are its own, the rest everybody's."""

    events: int | None
    identities: int | None
    instances: int | None
    dead_letters: int | None


class Expiring(StrEnum):
    """What a sweep removes; the values are columns of ``edda_sweeps``, but for the last two, which share one."""

    EVENTS = "events"
    IDENTITIES = "identities"
    INSTANCES = "instances"
    LETTERS = "letters"  # deliveries that were given up
    DEAD_ROWS = "dead_rows"  # rows of the outbox that were given up


@dataclass(frozen=True, slots=True)
class Sweep:
    """The right to sweep: one at a time has it."""

    id: int
    owner: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Remove what is older than ``before``, at most ``limit`` rows behind ``after``, in the order of their age.

    ``apps``: of instances, each app's own ``before``. ``dry_run``: only say what would be removed.
    """

    what: Expiring
    before: int
    after: tuple[int, str] = (0, "")
    limit: int = 1000
    apps: tuple[tuple[str, int], ...] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What became of a chunk.

    ``after``: where the next one begins; None: there is nothing more. ``postponed``: so much work waits to be done that
    what it may still receive was not looked through; nothing was removed.
    """

    removed: int
    kept: int
    after: tuple[int, str] | None
    postponed: bool = False


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A sweep as it stands: begun, ended or died, and how many rows it removed."""

    id: int
    owner: str
    began_at: int
    expires_at: int
    ended_at: int | None
    events: int
    identities: int
    instances: int
    dead_letters: int
