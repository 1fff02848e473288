"""The tables: dictionaries of frozen rows, so that a copy of the dictionaries is a copy of the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import sqlalchemy as sa

from edda.errors import StorageDataError
from edda.storage import schema
from edda.storage.rows import (
    ENDED,
    EventRow,
    Expiring,
    Keeps,
    NewDeadLetter,
    NewInstance,
    NewWait,
    OutboxMessage,
    Record,
    Shape,
    State,
    Trigger,
    WaitKind,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance: what it was inserted as, and what became of it."""

    new: NewInstance
    state: State
    owner: str | None
    fence: int
    live_key: bytes | None
    chain: str
    chain_started_at: int
    available_at: int
    start_event: int
    created_at: int
    updated_at: int
    signals: int = 0
    recoveries: int = 0
    ended_at: int | None = None
    output: bytes | None = None
    output_type: str | None = None
    error: bytes | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait: what it was registered as, and what became of it."""

    new: NewWait
    chain: str
    cursor: int
    deadline: int | None
    due: bool = False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An outbox row."""

    message: OutboxMessage
    available_at: int
    created_at: int
    state: str = "pending"
    attempts: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """A process."""

    app: str
    expires_at: int
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery that was given up."""

    id: int
    created_at: int
    new: NewDeadLetter


@dataclass(frozen=True, slots=True)
class SweepOf:
    """A sweep, and how many rows it removed of what."""

    owner: str
    began_at: int
    expires_at: int
    last_seq: int
    ended_at: int | None = None
    removed: Mapping[Expiring, int] = field(default_factory=dict)


@dataclass(slots=True)
class Tables:
    """All of it, and the one time of the transaction that works on it."""

    now: int = 0
    version: int = 1
    last_seq: int = 0
    last_accepted_at: int = 0
    last_id: int = 0
    instances: dict[str, Instance] = field(default_factory=dict)
    history: dict[tuple[str, int], tuple[int, Record]] = field(default_factory=dict)  # fence, record
    waits: dict[tuple[str, int], Wait] = field(default_factory=dict)
    events: dict[int, EventRow] = field(default_factory=dict)
    identities: dict[bytes, tuple[bytes, int, bytes]] = field(default_factory=dict)  # data hash, seq, batch
    keys: dict[bytes, frozenset[tuple[str, int]]] = field(default_factory=dict)  # hash -> (addressee, seq)
    unmarked: dict[tuple[bytes, int], int] = field(default_factory=dict)  # hash, seq -> created at
    shapes: dict[int, Shape] = field(default_factory=dict)
    triggers: dict[tuple[str, str, str], Trigger] = field(default_factory=dict)
    positions: dict[tuple[str, str, str, int], int] = field(default_factory=dict)
    channels: dict[str, str] = field(default_factory=dict)
    outbox: dict[int, Outgoing] = field(default_factory=dict)
    leases: dict[str, tuple[str, int]] = field(default_factory=dict)  # destination -> owner, expiry
    letters: dict[tuple[bytes, int], Letter] = field(default_factory=dict)  # batch, number in it
    keeps: dict[str, Keeps] = field(default_factory=dict)  # app -> what it keeps
    sweeps: dict[int, SweepOf] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)

    def copy(self) -> Tables:
        """To work on; the rows are shared."""
        copied = Tables()
        for one in fields(self):
            value = getattr(self, one.name)
            setattr(copied, one.name, dict(value) if isinstance(value, dict) else value)
        return copied

    def next_id(self) -> int:
        """A number for a row that has no key of its own."""
        self.last_id += 1
        return self.last_id

    def insert(self, new: NewInstance) -> bool:
        """False: id or live_key is taken."""
        check_keys(new, schema.instances)
        live = {row.live_key for row in self.instances.values() if row.live_key is not None}
        if new.id in self.instances or new.live_key in live:
            return False
        self.instances[new.id] = Instance(
            new,
            state=State.RUNNABLE if new.owner is None else State.RUNNING,
            owner=new.owner,
            fence=0 if new.owner is None else 1,
            live_key=new.live_key,
            chain=new.chain or new.id,
            chain_started_at=self.now if new.chain_started_at is None else new.chain_started_at,
            available_at=self.now + new.delay_us,
            start_event=new.start_event,
            created_at=self.now,
            updated_at=self.now,
        )
        return True

    def update(self, instance_id: str, **changes: Any) -> Instance:
        """Change an instance; the row as it is then."""
        row = self.instances[instance_id] = replace(self.instances[instance_id], **changes)
        return row

    def waits_of(self, instance_id: str) -> list[tuple[tuple[str, int], Wait]]:
        """In the order of their numbers."""
        return sorted((key, wait) for key, wait in self.waits.items() if key[0] == instance_id)

    def first_event(self, wait: Wait) -> EventRow | None:
        """The first unreceived event in accept order; none while the shape is filling."""
        new = wait.new
        shape = self.shapes.get(new.shape_id or 0)
        if new.kind is not WaitKind.EVENT or new.hash is None or (shape is not None and not shape.ready):
            return None
        seqs = [
            seq
            for addressee, seq in self.keys.get(new.hash, ())
            if addressee in {"", wait.chain} and seq > wait.cursor and seq != new.skip
        ]
        return self.events.get(min(seqs)) if seqs else None

    def signal(self, due: Iterable[tuple[str, int]]) -> set[str]:
        """Mark these waits due and signal their instances; the apps to tell."""
        apps = set()
        keys = [key for key in due if key in self.waits]
        for instance_id in {key[0] for key in keys}:
            row = self.instances.get(instance_id)
            if row is None or row.state in ENDED:
                continue
            self.update(instance_id, signals=row.signals + 1)
            if row.state is State.WAITING:
                self.update(instance_id, state=State.RUNNABLE, available_at=self.now, updated_at=self.now)
            apps.add(row.new.app)
            for key in keys:
                if key[0] == instance_id:
                    self.waits[key] = replace(self.waits[key], due=True)
        return apps


def view(kind: type[T], *sources: object, **named: Any) -> T:
    """A row of the contract, of what is named and of what the sources have under the same names (the first wins)."""
    for one in fields(kind):  # type: ignore[arg-type]  # the rows of the contract are dataclasses
        for source in sources:
            if one.name not in named and hasattr(source, one.name):
                named[one.name] = getattr(source, one.name)
    return kind(**named)


def check_text(value: object) -> None:
    """Raises StorageDataError for text that has no UTF-8 form, wherever it stands."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise StorageDataError(f"{value!r} cannot be stored: {error}. Nothing was written.") from error
    elif isinstance(value, list | tuple):
        for member in value:
            check_text(member)
    elif is_dataclass(value):
        for one in fields(value):
            check_text(getattr(value, one.name))


def check_keys(row: object, table: sa.Table) -> None:
    """Raises StorageDataError for keys longer than their columns."""
    for column in table.c:
        value = getattr(row, column.name, None)
        kind = column.type
        if isinstance(kind, schema.Key) and isinstance(value, str) and len(value.encode()) > kind.length:
            raise StorageDataError(
                f"{column.name} {value[:20]!r}... is longer than {kind.length} bytes. Nothing was written."
            )
