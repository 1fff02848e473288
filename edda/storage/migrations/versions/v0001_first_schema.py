"""The first schema.

Every step may find itself done already: on MySQL each statement of DDL commits by itself, so a migration that died in
the middle is run again from its beginning.
"""

import sqlalchemy as sa
from alembic import context, op

from edda.storage.schema import MYSQL, Key, digest, identity, payload, short_digest, text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what is not there yet."""
    op.create_table(
        "edda_instances",
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
        if_not_exists=True,
    )
    op.create_table(
        "edda_history",
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
        if_not_exists=True,
    )
    op.create_table(
        "edda_waits",
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
        if_not_exists=True,
    )
    op.create_table(
        "edda_events",
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
        if_not_exists=True,
    )
    op.create_table(
        "edda_identities",
        sa.Column("digest", digest(), primary_key=True),
        sa.Column("data_hash", digest(), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("batch_id", short_digest(), nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_event_keys",
        sa.Column("hash", digest(), primary_key=True),
        sa.Column("addressee", Key(128), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_unmarked",
        sa.Column("hash", digest(), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_shapes",
        sa.Column("id", identity(), primary_key=True, autoincrement=True),
        sa.Column("pattern", Key(255), nullable=False),
        sa.Column("paths", Key(700), nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("backfill_until", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("pattern", "paths", name="edda_shapes_what"),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_triggers",
        sa.Column("id", identity(), primary_key=True, autoincrement=True),
        sa.Column("app", Key(128), nullable=False),
        sa.Column("workflow", Key(255), nullable=False),
        sa.Column("pattern", Key(255), nullable=False),
        sa.Column("key_path", text()),
        sa.Column("version", Key(64)),
        sa.Column("policy", Key(16), nullable=False),
        sa.UniqueConstraint("app", "workflow", "pattern", name="edda_triggers_what"),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_accept",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("routing_version", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("last_accepted_at", sa.BigInteger, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_outbox",
        sa.Column("id", identity(), primary_key=True, autoincrement=True),
        sa.Column("destination", Key(255), nullable=False),
        sa.Column("ordering_key", Key(255)),
        sa.Column("state", Key(16), nullable=False),
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
        if_not_exists=True,
    )
    op.create_table(
        "edda_relay_leases",
        sa.Column("destination", Key(255), primary_key=True),
        sa.Column("owner", Key(64), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_dead_letters",
        sa.Column("id", identity(), primary_key=True, autoincrement=True),
        sa.Column("batch_id", short_digest(), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("origin", text(), nullable=False),
        sa.Column("raw", payload(), nullable=False),
        sa.Column("headers", payload(), nullable=False),
        sa.Column("reason", text(), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("batch_id", "number", name="edda_dead_letters_once"),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_source_positions",
        sa.Column("cluster", Key(128), primary_key=True),
        sa.Column("group_id", Key(255), primary_key=True),
        sa.Column("topic", Key(255), primary_key=True),
        sa.Column("partition_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_channels",
        sa.Column("channel", Key(255), primary_key=True),
        sa.Column("mode", Key(16), nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_workers",
        sa.Column("id", Key(64), primary_key=True),
        sa.Column("app", Key(128), nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("dead", sa.Boolean, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_retention",
        sa.Column("app", Key(128), primary_key=True),
        sa.Column("events", sa.BigInteger),
        sa.Column("identities", sa.BigInteger),
        sa.Column("instances", sa.BigInteger),
        sa.Column("dead_letters", sa.BigInteger),
        sa.Column("declared_at", sa.BigInteger, nullable=False),
        **MYSQL,
        if_not_exists=True,
    )
    op.create_table(
        "edda_sweeps",
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
        if_not_exists=True,
    )

    _index(
        "edda_instances_runnable",
        "edda_instances",
        ["state", "app", sa.text("priority DESC"), "available_at"],
        "state = 'runnable'",
    )
    _index("edda_instances_owner", "edda_instances", ["owner"], "owner IS NOT NULL")
    _index("edda_instances_created", "edda_instances", ["created_at", "id"])
    _index("edda_instances_chain", "edda_instances", ["chain"], "chain <> id")
    _index("edda_instances_parent", "edda_instances", ["parent"], "parent IS NOT NULL")
    if op.get_context().dialect.name not in {"mysql", "mariadb"}:
        _index("edda_instances_paused", "edda_instances", ["id"], "state = 'paused'")
    _index("edda_waits_hash", "edda_waits", ["hash", "chain"], postgresql_where="NOT due")
    _index(
        "edda_waits_deadline",
        "edda_waits",
        ["due", "deadline"],
        postgresql_where="NOT due AND deadline IS NOT NULL",
    )
    _index("edda_waits_shape", "edda_waits", ["shape_id"], postgresql_where="NOT due")
    _index("edda_events_type", "edda_events", ["type", "seq"])
    _index("edda_events_accepted", "edda_events", ["accepted_at", "seq"])
    _index("edda_identities_seq", "edda_identities", ["seq"])
    _index("edda_event_keys_seq", "edda_event_keys", ["seq"])
    _index("edda_unmarked_created", "edda_unmarked", ["created_at"])
    _index("edda_outbox_state", "edda_outbox", ["state", "destination", "id"])
    _index("edda_outbox_key", "edda_outbox", ["destination", "ordering_key", "id"])
    _index("edda_workers_expiry", "edda_workers", ["dead", "expires_at"])
    op.execute(
        "INSERT INTO edda_accept (id, routing_version, last_seq, last_accepted_at) "
        "SELECT 1, 1, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM edda_accept WHERE id = 1)"
    )


def _index(
    name: str,
    table: str,
    columns: list[str | sa.TextClause],
    where: str | None = None,
    *,
    postgresql_where: str | None = None,
) -> None:
    # CREATE INDEX IF NOT EXISTS is unknown to MySQL, and reflection is slow on PostgreSQL: each in its own way.
    says_if = op.get_context().dialect.name not in {"mysql", "mariadb"}
    if not says_if and not context.is_offline_mode():
        known = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
        if name in known:
            return
    condition = None if where is None else sa.text(where)
    on_postgresql = condition if postgresql_where is None else sa.text(postgresql_where)
    op.create_index(
        name,
        table,
        columns,
        postgresql_where=on_postgresql,
        sqlite_where=condition,
        if_not_exists=says_if or None,
    )


def downgrade() -> None:
    """There is nothing before it."""
    msg = "the first schema has no predecessor; drop the edda_* tables by hand if you mean it"
    raise NotImplementedError(msg)
