"""The routing table: shapes and triggers, and making a new shape's older events findable. See ``contract.Storage``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked, event_row
from edda.storage.core.wakes import has_event, signal
from edda.storage.rows import EventRow, Routing, Shape, Trigger
from edda.storage.schema import accept, event_keys, events, shapes, triggers, waits


def routing(c: sa.Connection) -> Routing:
    """Version first: what changes behind it makes the batch stale, never wrong."""
    version = c.execute(sa.select(accept.c.routing_version).where(accept.c.id == 1)).scalar_one()
    return Routing(
        version,
        tuple(_shape(row) for row in c.execute(sa.select(shapes).order_by(shapes.c.id))),
        tuple(
            Trigger(row.app, row.workflow, row.pattern, row.key_path, row.version, row.policy)
            for row in c.execute(sa.select(triggers).order_by(triggers.c.id))
        ),
    )


def _routing_changed(c: sa.Connection) -> None:
    c.execute(sa.update(accept).where(accept.c.id == 1).values(routing_version=accept.c.routing_version + 1))


# ---------------------------------------------------------------------------------------------- shapes


def find_shape(c: sa.Connection, pattern: str, paths: tuple[str, ...]) -> Shape | None:
    """A registered shape."""
    row = c.execute(
        sa.select(shapes).where(shapes.c.pattern == pattern, shapes.c.paths == json.dumps(list(paths)))
    ).one_or_none()
    return None if row is None else _shape(row)


def _shape(row: Any) -> Shape:
    return Shape(row.id, row.pattern, tuple(json.loads(row.paths)), bool(row.ready), row.backfill_until)


def register_shape(c: sa.Connection, traits: Traits, pattern: str, paths: tuple[str, ...]) -> Shape:
    """From this commit on accepts hash for it; what came before is backfilled."""
    traits.lock_accept(c)
    found = find_shape(c, pattern, paths)
    if found is not None:
        return found
    last = c.execute(sa.select(accept.c.last_seq).where(accept.c.id == 1)).scalar_one()
    c.execute(
        sa.insert(shapes).values(
            pattern=pattern, paths=json.dumps(list(paths)), ready=last == 0, backfill_until=last
        )
    )
    _routing_changed(c)
    registered = find_shape(c, pattern, paths)
    assert registered is not None  # noqa: S101, inserted above
    return registered


def events_of_pattern(c: sa.Connection, pattern: str, after: int, until: int, limit: int) -> list[EventRow]:
    """Retained events that a pattern fits."""
    fits: sa.ColumnElement[bool] = events.c.type == pattern
    if pattern == "*":
        fits = sa.true()
    elif pattern.endswith(".*"):
        # A range, not LIKE: the index serves it, and no character of the type is special. '/' follows '.'.
        fits = sa.and_(events.c.type >= pattern[:-1], events.c.type < pattern[:-2] + "/")
    rows = c.execute(
        sa.select(events)
        .where(fits, events.c.seq > after, events.c.seq <= until)
        .order_by(events.c.seq)
        .limit(limit)
    )
    return [event_row(row) for row in rows]


def backfill(
    c: sa.Connection,
    traits: Traits,
    shape_id: int,
    keys: Sequence[tuple[bytes, str, int]],
    now: int,
    *,
    done: bool,
) -> frozenset[str]:
    """A chunk of older events' keys; with ``done`` the shape is ready and its waits are looked at."""
    if done:
        traits.lock_accept(c)
    there = _locked_events(c, traits, {seq for _, _, seq in keys})
    traits.insert_ignoring(
        c,
        event_keys,
        [
            {"hash": key, "addressee": addressee, "seq": seq}
            for key, addressee, seq in sorted(set(keys))
            if seq in there
        ],
    )
    if not done:
        return frozenset()
    c.execute(sa.update(shapes).where(shapes.c.id == shape_id).values(ready=True, backfill_until=0))
    _routing_changed(c)
    # All at once, so that their instances are locked in one order: only waits of the time of filling are here.
    rows = c.execute(
        sa.select(waits.c.instance_id, waits.c.seq).where(
            waits.c.shape_id == shape_id, ~waits.c.due, has_event
        )
    )
    return frozenset(signal(c, traits, [(row.instance_id, row.seq) for row in rows], now))


def _locked_events(c: sa.Connection, traits: Traits, seqs: set[int]) -> set[int]:
    """Those that are still there, and stay until the commit: retention would never find a key of one that is gone."""
    there: set[int] = set()
    for part in chunked(sorted(seqs)):
        select = sa.select(events.c.seq).where(events.c.seq.in_(part)).order_by(events.c.seq)
        there |= set(c.execute(traits.lock_rows(select)).scalars())
    return there


# ---------------------------------------------------------------------------------------------- triggers


def declare_triggers(c: sa.Connection, traits: Traits, declared: Sequence[Trigger]) -> None:
    """Insert or update; the routing version moves only if something changed."""
    if not declared:
        return
    traits.lock_accept(c)
    changed = False
    for trigger in declared:
        here = sa.and_(
            triggers.c.app == trigger.app,
            triggers.c.workflow == trigger.workflow,
            triggers.c.pattern == trigger.pattern,
        )
        row = c.execute(sa.select(triggers).where(here)).one_or_none()
        values = {"key_path": trigger.key_path, "version": trigger.version, "policy": trigger.policy}
        if row is None:
            c.execute(sa.insert(triggers).values(**_identity(trigger), **values))
        elif (row.key_path, row.version, row.policy) != (trigger.key_path, trigger.version, trigger.policy):
            c.execute(sa.update(triggers).where(here).values(**values))
        else:
            continue
        changed = True
    if changed:
        _routing_changed(c)


def _identity(trigger: Trigger) -> dict[str, Any]:
    return {name: getattr(trigger, name) for name in ("app", "workflow", "pattern")}
