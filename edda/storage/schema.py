"""The tables, said once for all databases. They live beside the user's own; every name starts with ``edda_``.

Columns that are compared for equality are ``Key``: on MySQL and MariaDB they are VARBINARY, because their text
collations take 'A', 'á' and 'a ' for 'a'. Times are BIGINT microseconds (ADR-0001).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

metadata = sa.MetaData()


class Key(TypeDecorator[str]):
    """Text that is compared byte by byte. ``length`` counts bytes of UTF-8 on MySQL, characters elsewhere."""

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """The column's own type."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.VARBINARY(self.length))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.String(self.length, collation="C"))
        return dialect.type_descriptor(sa.String(self.length))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Bytes where the column is bytes."""
        if value is not None and dialect.name in {"mysql", "mariadb"}:
            return value.encode()
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002, SQLAlchemy's signature
        """Text again."""
        return value.decode() if isinstance(value, bytes) else value


def digest() -> sa.types.TypeEngine[bytes]:
    """A SHA-256 digest."""
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def short_digest() -> sa.types.TypeEngine[bytes]:
    """A 16-byte digest or random id."""
    return sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")


def payload() -> sa.types.TypeEngine[bytes]:
    """Bytes of any size: JSON text in UTF-8, or what the user gave."""
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def text() -> sa.types.TypeEngine[str]:
    """Text that no statement compares."""
    return sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")


MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mariadb_engine": "InnoDB"}


def identity() -> sa.types.TypeEngine[int]:
    """An identity column: SQLite gives numbers only to INTEGER."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


instances = sa.Table(
    "edda_instances",
    metadata,
    sa.Column("id", Key(128), primary_key=True),
    sa.Column("app", Key(128), nullable=False),
    sa.Column("workflow", Key(255), nullable=False),
    sa.Column("version", Key(64)),
    sa.Column("state", Key(16), nullable=False),
    sa.Column("owner", Key(64)),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("signals", sa.BigInteger, nullable=False),
    sa.Column("chain", Key(128), nullable=False),
    sa.Column("chain_started_at", sa.BigInteger, nullable=False),
    sa.Column("live_key", digest()),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("available_at", sa.BigInteger, nullable=False),
    sa.Column("recoveries", sa.Integer, nullable=False),
    sa.Column("start_event", sa.BigInteger, nullable=False),
    sa.Column("parent", Key(128)),
    sa.Column("parent_seq", sa.Integer),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("input", payload(), nullable=False),
    sa.Column("carried", payload()),
    sa.Column("output", payload()),
    sa.Column("output_type", Key(64)),
    sa.Column("error", payload()),
    sa.UniqueConstraint("live_key", name="edda_instances_live_key"),
    **MYSQL,
)
# The claim's way: runnable instances of one app by priority, then by time.
sa.Index(
    "edda_instances_runnable",
    instances.c.state,
    instances.c.app,
    instances.c.priority.desc(),
    instances.c.available_at,
    postgresql_where=instances.c.state == "runnable",
    sqlite_where=instances.c.state == "runnable",
)
sa.Index(
    "edda_instances_owner",
    instances.c.owner,
    postgresql_where=instances.c.owner.is_not(None),
    sqlite_where=instances.c.owner.is_not(None),
)
sa.Index("edda_instances_created", instances.c.created_at, instances.c.id)
# Retention's ways: from a run to those that it continues as, from a parent to its children, and to what is paused. The
# few that there are: on PostgreSQL and SQLite no other start or turn pays for them. MySQL finds what is paused by the
# index of what is runnable, which has all states there.
sa.Index(
    "edda_instances_chain",
    instances.c.chain,
    postgresql_where=instances.c.chain != instances.c.id,
    sqlite_where=instances.c.chain != instances.c.id,
)
sa.Index(
    "edda_instances_parent",
    instances.c.parent,
    postgresql_where=instances.c.parent.is_not(None),
    sqlite_where=instances.c.parent.is_not(None),
)
sa.Index(
    "edda_instances_paused",
    instances.c.id,
    postgresql_where=instances.c.state == "paused",
    sqlite_where=instances.c.state == "paused",
).ddl_if(dialect=("postgresql", "sqlite"))  # type: ignore[arg-type]  # it takes several

history = sa.Table(
    "edda_history",
    metadata,
    sa.Column("instance_id", Key(128), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("pos", sa.Integer, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("kind", Key(32), nullable=False),
    sa.Column("name", text(), nullable=False),
    sa.Column("args_hash", short_digest()),
    sa.Column("payload", payload(), nullable=False),
    sa.Column("content_type", Key(64)),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    **MYSQL,
)

waits = sa.Table(
    "edda_waits",
    metadata,
    sa.Column("instance_id", Key(128), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", Key(16), nullable=False),
    sa.Column("name", text(), nullable=False),
    sa.Column("hash", digest()),
    sa.Column("chain", Key(128), nullable=False),
    sa.Column("shape_id", sa.BigInteger),
    sa.Column("cursor", sa.BigInteger, nullable=False),
    sa.Column("skip", sa.BigInteger, nullable=False),
    sa.Column("deadline", sa.BigInteger),
    sa.Column("due", sa.Boolean, nullable=False),
    sa.Column("detail", payload()),
    **MYSQL,
)
# What is due is looked for by none of these. On PostgreSQL they are rid of it: marking a wait due then writes to none,
# and of the many waits of one hash each chunk finds those that are left.
sa.Index("edda_waits_hash", waits.c.hash, waits.c.chain, postgresql_where=~waits.c.due)
sa.Index(
    "edda_waits_deadline",
    waits.c.due,
    waits.c.deadline,
    postgresql_where=sa.and_(~waits.c.due, waits.c.deadline.is_not(None)),
)
sa.Index("edda_waits_shape", waits.c.shape_id, postgresql_where=~waits.c.due)

events = sa.Table(
    "edda_events",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("type", Key(255), nullable=False),
    sa.Column("source", text(), nullable=False),
    sa.Column("event_id", text(), nullable=False),
    sa.Column("attributes", payload(), nullable=False),
    sa.Column("data", payload()),
    sa.Column("content_type", text()),
    sa.Column("addressee", Key(128)),
    sa.Column("accepted_at", sa.BigInteger, nullable=False),
    **MYSQL,
)
sa.Index("edda_events_type", events.c.type, events.c.seq)
sa.Index("edda_events_accepted", events.c.accepted_at, events.c.seq)

identities = sa.Table(
    "edda_identities",
    metadata,
    sa.Column("digest", digest(), primary_key=True),
    sa.Column("data_hash", digest(), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("batch_id", short_digest(), nullable=False),
    **MYSQL,
)
sa.Index("edda_identities_seq", identities.c.seq)

event_keys = sa.Table(
    "edda_event_keys",
    metadata,
    sa.Column("hash", digest(), primary_key=True),
    sa.Column("addressee", Key(128), primary_key=True),  # '' or the chain it is addressed to
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    **MYSQL,
)
sa.Index("edda_event_keys_seq", event_keys.c.seq)

#: What accepts have left of the waits for their events: one row per hash, until ``mark_due`` has marked the rest.
unmarked = sa.Table(
    "edda_unmarked",
    metadata,
    sa.Column("hash", digest(), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),  # the last event of that accept
    sa.Column("created_at", sa.BigInteger, nullable=False),
    **MYSQL,
)
sa.Index("edda_unmarked_created", unmarked.c.created_at)

shapes = sa.Table(
    "edda_shapes",
    metadata,
    sa.Column("id", identity(), primary_key=True, autoincrement=True),
    sa.Column("pattern", Key(255), nullable=False),
    sa.Column("paths", Key(700), nullable=False),  # canonical JSON list
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.Column("backfill_until", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("pattern", "paths", name="edda_shapes_what"),
    **MYSQL,
)

triggers = sa.Table(
    "edda_triggers",
    metadata,
    sa.Column("id", identity(), primary_key=True, autoincrement=True),
    sa.Column("app", Key(128), nullable=False),
    sa.Column("workflow", Key(255), nullable=False),
    sa.Column("pattern", Key(255), nullable=False),
    sa.Column("key_path", text()),
    sa.Column("version", Key(64)),
    sa.Column("policy", Key(16), nullable=False),
    sa.UniqueConstraint("app", "workflow", "pattern", name="edda_triggers_what"),
    **MYSQL,
)

#: One row (id 1): the routing version and the last accept sequence; on MySQL also the accept lock itself.
accept = sa.Table(
    "edda_accept",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("routing_version", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("last_accepted_at", sa.BigInteger, nullable=False),
    **MYSQL,
)

outbox = sa.Table(
    "edda_outbox",
    metadata,
    sa.Column("id", identity(), primary_key=True, autoincrement=True),
    sa.Column("destination", Key(255), nullable=False),
    sa.Column("ordering_key", Key(255)),
    sa.Column("state", Key(16), nullable=False),  # pending, retrying, parked, dead
    sa.Column("type", text(), nullable=False),
    sa.Column("source", text(), nullable=False),
    sa.Column("event_id", text(), nullable=False),
    sa.Column("attributes", payload(), nullable=False),
    sa.Column("data", payload()),
    sa.Column("content_type", text()),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("available_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("instance_id", Key(128)),
    sa.Column("reason", text()),
    sqlite_autoincrement=True,
    **MYSQL,
)
# The state first: housekeeping asks for what is pending, whatever its destination.
sa.Index("edda_outbox_state", outbox.c.state, outbox.c.destination, outbox.c.id)
sa.Index("edda_outbox_key", outbox.c.destination, outbox.c.ordering_key, outbox.c.id)

relay_leases = sa.Table(
    "edda_relay_leases",
    metadata,
    sa.Column("destination", Key(255), primary_key=True),
    sa.Column("owner", Key(64), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    **MYSQL,
)

dead_letters = sa.Table(
    "edda_dead_letters",
    metadata,
    sa.Column("id", identity(), primary_key=True, autoincrement=True),
    sa.Column("batch_id", short_digest(), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # in the batch, from 1
    sa.Column("origin", text(), nullable=False),
    sa.Column("raw", payload(), nullable=False),
    sa.Column("headers", payload(), nullable=False),
    sa.Column("reason", text(), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("batch_id", "number", name="edda_dead_letters_once"),
    **MYSQL,
)

#: How each channel is read; of a competing one, the last message that somebody has taken.
channels = sa.Table(
    "edda_channels",
    metadata,
    sa.Column("channel", Key(255), primary_key=True),
    sa.Column("mode", Key(16), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    **MYSQL,
)

source_positions = sa.Table(
    "edda_source_positions",
    metadata,
    sa.Column("cluster", Key(128), primary_key=True),
    sa.Column("group_id", Key(255), primary_key=True),
    sa.Column("topic", Key(255), primary_key=True),
    sa.Column("partition_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    **MYSQL,
)

workers = sa.Table(
    "edda_workers",
    metadata,
    sa.Column("id", Key(64), primary_key=True),
    sa.Column("app", Key(128), nullable=False),
    sa.Column("started_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("dead", sa.Boolean, nullable=False),
    **MYSQL,
)
sa.Index("edda_workers_expiry", workers.c.dead, workers.c.expires_at)

#: What each app keeps, in microseconds; NULL is for ever. What all apps share is kept for the longest of these times.
retention = sa.Table(
    "edda_retention",
    metadata,
    sa.Column("app", Key(128), primary_key=True),
    sa.Column("events", sa.BigInteger),
    sa.Column("identities", sa.BigInteger),
    sa.Column("instances", sa.BigInteger),
    sa.Column("dead_letters", sa.BigInteger),
    sa.Column("declared_at", sa.BigInteger, nullable=False),
    **MYSQL,
)

#: One row per sweep: who sweeps and for how long nobody else may, what it removed, and how far accepts had come when it
#: began, which is how the age of an identity is known (ADR-0016).
sweeps = sa.Table(
    "edda_sweeps",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", Key(64), nullable=False),
    sa.Column("began_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("identities", sa.BigInteger, nullable=False),
    sa.Column("instances", sa.BigInteger, nullable=False),
    sa.Column("dead_letters", sa.BigInteger, nullable=False),
    **MYSQL,
)
