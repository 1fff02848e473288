"""Cold reads: instances, histories, counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json

from edda.errors import ConfigurationError
from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked, record_of
from edda.storage.rows import ENDED, InstanceRow, LiveVersion, Record, State, WaitKind
from edda.storage.schema import history, instances, metadata, outbox, waits

_PATH = re.compile(r"[A-Za-z_][\w]*(\.[A-Za-z_][\w]*)*\Z")
_MISSING = object()


def get_instance(c: sa.Connection, instance_id: str) -> InstanceRow | None:
    """One instance."""
    rows = _rows(c, sa.select(instances).where(instances.c.id == instance_id))
    return rows[0] if rows else None


def _rows(c: sa.Connection, select: sa.Select[Any]) -> list[InstanceRow]:
    found = c.execute(select).all()
    kinds: dict[str, set[WaitKind]] = {}
    for part in chunked([row.id for row in found if row.ended_at is None]):
        for wait in c.execute(
            sa.select(waits.c.instance_id, waits.c.kind).where(waits.c.instance_id.in_(part))
        ):
            kinds.setdefault(wait.instance_id, set()).add(WaitKind(wait.kind))
    return [
        InstanceRow(
            row.id,
            row.app,
            row.workflow,
            row.version,
            State(row.state),
            row.owner,
            row.fence,
            row.signals,
            row.chain,
            row.priority,
            row.recoveries,
            row.created_at,
            row.updated_at,
            row.ended_at,
            row.input,
            row.output,
            row.output_type,
            row.error,
            frozenset(kinds.get(row.id, ())),
            row.carried,
        )
        for row in found
    ]


def find_instances(
    c: sa.Connection,
    traits: Traits,
    *,
    app: str | None,
    states: Sequence[State],
    workflow_contains: str | None,
    id_contains: str | None,
    started_after: int | None,
    started_before: int | None,
    input_filters: Mapping[str, object] | None,
    where: Callable[[InstanceRow], bool] | None,
    limit: int,
    before: tuple[int, str] | None,
) -> list[InstanceRow]:
    """Newest first. Filters on the input, and ``where``, look at pages as they are read: the same everywhere."""
    for path in input_filters or {}:
        if not _PATH.match(path):
            msg = f"input_filters: {path!r} is not a path; use names joined by dots, for example 'order.customer_id'"
            raise ConfigurationError(msg)
    found: list[InstanceRow] = []
    while len(found) < limit:
        conditions: list[sa.ColumnElement[bool]] = []
        if app is not None:
            conditions.append(instances.c.app == app)
        if states:
            conditions.append(instances.c.state.in_([str(state) for state in states]))
        for column, part in ((instances.c.workflow, workflow_contains), (instances.c.id, id_contains)):
            if part:
                pattern = "%" + re.sub(r"([%_!])", r"!\1", part) + "%"
                conditions.append(
                    traits.lower(column).like(traits.lower(sa.literal(pattern, sa.Text)), escape="!")
                )
        if started_after is not None:
            conditions.append(instances.c.created_at >= started_after)
        if started_before is not None:
            conditions.append(instances.c.created_at <= started_before)
        if before is not None:
            conditions.append(
                sa.or_(
                    instances.c.created_at < before[0],
                    sa.and_(instances.c.created_at == before[0], instances.c.id < before[1]),
                )
            )
        picky = bool(input_filters or where)
        size = max(limit, 500) if picky else limit
        page = _rows(
            c,
            sa.select(instances)
            .where(*conditions)
            .order_by(instances.c.created_at.desc(), instances.c.id.desc())
            .limit(size),
        )
        found += [
            row
            for row in page
            if (not input_filters or _matches(row.input, input_filters)) and (where is None or where(row))
        ]
        if len(page) < size:
            break
        before = (page[-1].created_at, page[-1].id)
    return found[:limit]


def _matches(payload: bytes, filters: Mapping[str, object]) -> bool:
    try:
        document = from_json(payload)
    except ValueError:
        return False  # a payload that is no JSON has no paths
    for path, wanted in filters.items():
        value: Any = document
        for name in path.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
        if value is _MISSING:
            value = None
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            return False
    return True


def get_history(c: sa.Connection, instance_id: str) -> list[Record]:
    """All records."""
    rows = c.execute(sa.select(history).where(history.c.instance_id == instance_id).order_by(history.c.pos))
    return [record_of(row) for row in rows]


def live_versions(c: sa.Connection) -> list[LiveVersion]:
    """What has not ended, by app, workflow and version."""
    of = instances.c
    paused = sa.func.sum(sa.case((of.state == State.PAUSED, 1), else_=0))
    rows = c.execute(
        sa.select(of.app, of.workflow, of.version, sa.func.count(), paused, sa.func.min(of.created_at))
        .where(of.state.in_([str(state) for state in State if state not in ENDED]))
        .group_by(of.app, of.workflow, of.version)
    )
    return sorted(LiveVersion(a, w, v or "", n, int(p), at) for a, w, v, n, p, at in rows)


def counts(c: sa.Connection) -> dict[str, int]:
    """Rows by table, instances by state, outbox rows by state."""
    found = {
        table.name.removeprefix("edda_"): c.execute(
            sa.select(sa.func.count()).select_from(table)
        ).scalar_one()
        for table in metadata.sorted_tables
    }
    for state, number in c.execute(sa.select(instances.c.state, sa.func.count()).group_by(instances.c.state)):
        found[f"instances.{state}"] = number
    for state, number in c.execute(sa.select(outbox.c.state, sa.func.count()).group_by(outbox.c.state)):
        found[f"outbox.{state}"] = number
    return found
