"""flush, claim, load: the engine's transactions. See ``contract.Storage`` for what each promises.

A turn is applied if and only if its fence is compared on the locked row; what was applied by an earlier try (unknown
commit) is recognised by its first record, or by its release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import (
    chunked,
    event_row,
    instance_values,
    outbox_values,
    record_of,
    record_values,
)
from edda.storage.core.wakes import has_event, shape_ready
from edda.storage.rows import (
    ENDED,
    Applied,
    ClaimedInstance,
    EventRow,
    FlushResult,
    LoadedInstance,
    NewWait,
    Record,
    Release,
    State,
    Turn,
    TurnResult,
    WaitKind,
    WaitRow,
)
from edda.storage.schema import event_keys, events, history, instances, outbox, waits, workers


class RepeatedFlushError(Exception):
    """A record exists already: look before inserting. Internal; the transaction is run again."""


_key = event_keys.alias("k")

_first_event = (
    sa.select(sa.func.min(_key.c.seq))
    .where(
        _key.c.hash == waits.c.hash,
        sa.or_(_key.c.addressee == "", _key.c.addressee == waits.c.chain),
        _key.c.seq > waits.c.cursor,
        _key.c.seq != waits.c.skip,
    )
    .correlate(waits)
    .scalar_subquery()
)


# ---------------------------------------------------------------------------------------------- flush


def flush(c: sa.Connection, traits: Traits, turns: Sequence[Turn], now: int, *, careful: bool) -> FlushResult:
    """Apply the turns. ``careful``: an earlier try may have been committed."""
    if any(turn.release is Release.PARK or any(w.hash is not None for w in turn.waits) for turn in turns):
        traits.lock_accept(c, exclusive=False)
    starts = [instance_values(turn.start, now) for turn in turns if turn.start is not None]
    traits.insert_ignoring(c, instances, sorted(starts, key=lambda row: str(row["id"])))
    locked = _lock(c, traits, [turn.instance_id for turn in turns])
    before = _records_before(c, turns) if careful else {}

    results: list[TurnResult | None] = []
    mine: list[Turn] = []
    for turn in turns:
        verdict = _judge(turn, locked.get(turn.instance_id), before)
        results.append(verdict)
        if verdict is None:
            mine.append(turn)
    fresh = [
        turn for turn in mine if not (turn.records and (turn.instance_id, turn.records[0].seq) in before)
    ]
    _write(c, traits, fresh, locked, now)
    released = _release(c, mine, locked, now)
    judged = iter(mine)
    return FlushResult(now, tuple(result or released[next(judged).instance_id] for result in results))


def _lock(c: sa.Connection, traits: Traits, ids: Sequence[str]) -> dict[str, Any]:
    columns = (
        instances.c.id,
        instances.c.owner,
        instances.c.fence,
        instances.c.signals,
        instances.c.chain,
        instances.c.state,
    )
    locked: dict[str, Any] = {}
    for part in chunked(sorted(ids)):
        select = sa.select(*columns).where(instances.c.id.in_(part)).order_by(instances.c.id)
        locked.update({row.id: row for row in c.execute(traits.lock_rows(select))})
    return locked


def _records_before(c: sa.Connection, turns: Sequence[Turn]) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for turn in turns:
        if turn.records:
            seq = turn.records[0].seq
            fence = c.execute(
                sa.select(history.c.fence).where(
                    history.c.instance_id == turn.instance_id, history.c.seq == seq
                )
            ).scalar()
            if fence is not None:
                found[turn.instance_id, seq] = fence
    return found


def _judge(turn: Turn, row: Any, before: dict[tuple[str, int], int]) -> TurnResult | None:
    """None: ours to write."""
    if row is None:
        return TurnResult(Applied.EXISTS if turn.start is not None else Applied.LOST, 0)
    if (row.owner, row.fence) != (turn.owner, turn.fence):
        if (
            row.owner is None
            and row.fence == turn.fence
            and turn.release is not Release.KEEP
            and turn.start is None
        ):
            return TurnResult(
                Applied.APPLIED, row.signals
            )  # by an earlier try: only a release takes the owner away
        return TurnResult(Applied.EXISTS if turn.start is not None else Applied.LOST, row.signals)
    if turn.records and before.get((turn.instance_id, turn.records[0].seq), turn.fence) != turn.fence:
        return TurnResult(Applied.LOST, row.signals)
    return None


def _write(c: sa.Connection, traits: Traits, turns: Sequence[Turn], locked: dict[str, Any], now: int) -> None:
    records = [record_values(t.instance_id, t.fence, record, now) for t in turns for record in t.records]
    if records:
        try:
            c.execute(sa.insert(history), records)
        except sa.exc.IntegrityError as error:
            raise RepeatedFlushError from error
    for turn in turns:
        replaced = [*turn.drop_waits, *(wait.seq for wait in turn.waits)]
        if replaced:
            c.execute(
                sa.delete(waits).where(waits.c.instance_id == turn.instance_id, waits.c.seq.in_(replaced))
            )
    floors = _Floors(c)
    rows = [
        wait_values(t.instance_id, locked[t.instance_id].chain, w, now, floors)
        for t in turns
        for w in t.waits
    ]
    if rows:
        c.execute(sa.insert(waits), rows)
    messages = [outbox_values(message, now) for turn in turns for message in turn.outbox]
    if messages:
        c.execute(sa.insert(outbox), messages)
    children = [instance_values(child, now) for turn in turns for child in turn.children]
    traits.insert_ignoring(c, instances, sorted(children, key=lambda row: str(row["id"])))
    recovered = sorted(turn.instance_id for turn in turns if turn.reset_recoveries)
    for part in chunked(recovered):
        c.execute(sa.update(instances).where(instances.c.id.in_(part)).values(recoveries=0))


class _Floors:
    """The last event accepted before a time, looked up once per time."""

    def __init__(self, c: sa.Connection) -> None:
        self._c = c
        self._known: dict[int, int] = {}

    def __call__(self, since: int) -> int:
        if since not in self._known:
            found = self._c.execute(
                sa.select(events.c.seq)
                .where(events.c.accepted_at < since)
                .order_by(events.c.accepted_at.desc(), events.c.seq.desc())
                .limit(1)
            ).scalar()
            self._known[since] = found or 0
        return self._known[since]


def wait_values(instance_id: str, chain: str, wait: NewWait, now: int, floors: Any) -> dict[str, Any]:
    """The row of a wait."""
    cursor = wait.cursor
    if wait.since_us is not None:
        cursor = max(cursor, floors(wait.since_us))
    return {
        "instance_id": instance_id,
        "seq": wait.seq,
        "kind": wait.kind,
        "name": wait.name,
        "hash": wait.hash,
        "chain": chain,
        "shape_id": wait.shape_id,
        "cursor": cursor,
        "skip": wait.skip,
        "deadline": now + wait.delay_us if wait.delay_us is not None else wait.deadline_us,
        "due": False,
        "detail": wait.detail,
    }


def _release(
    c: sa.Connection, turns: Sequence[Turn], locked: dict[str, Any], now: int
) -> dict[str, TurnResult]:
    results: dict[str, TurnResult] = {}
    parking: list[Turn] = []
    looking: list[Turn] = []
    for turn in turns:
        signals = locked[turn.instance_id].signals
        results[turn.instance_id] = TurnResult(Applied.APPLIED, signals)
        paused = turn.end_state is State.PAUSED
        if turn.release in {Release.PARK, Release.END} and signals != turn.signals and not paused:
            results[turn.instance_id] = TurnResult(Applied.KEPT, signals)
        elif turn.release is Release.PARK:
            parking.append(turn)
        elif turn.release is Release.END:
            _end(c, turn, now)
        elif turn.release is Release.YIELD:
            c.execute(
                sa.update(instances)
                .where(instances.c.id == turn.instance_id)
                .values(owner=None, state=State.RUNNABLE, available_at=now, updated_at=now)
            )
        elif any(wait.hash is not None for wait in turn.waits):
            looking.append(turn)
    _park(c, parking, results, now)
    _look(c, looking, results)
    ended = [
        t.instance_id
        for t in turns
        if t.end_state in ENDED and results[t.instance_id].applied is Applied.APPLIED
    ]
    for part in chunked(ended):
        c.execute(sa.delete(waits).where(waits.c.instance_id.in_(part)))
    return results


def _end(c: sa.Connection, turn: Turn, now: int) -> None:
    values: dict[str, Any] = {
        "state": turn.end_state,
        "owner": None,
        "output": turn.output,
        "output_type": turn.output_type,
        "error": turn.error,
        "updated_at": now,
    }
    if turn.end_state in ENDED:
        values |= {"ended_at": now, "live_key": None}
    c.execute(sa.update(instances).where(instances.c.id == turn.instance_id).values(**values))


def _park(c: sa.Connection, turns: Sequence[Turn], results: dict[str, TurnResult], now: int) -> None:
    ids = [turn.instance_id for turn in turns]
    due: set[str] = set()
    for part in chunked(ids):
        # A later statement than the accept lock's: it sees what accept has committed while we waited for the lock.
        found = c.execute(
            sa.select(waits.c.instance_id, waits.c.seq, waits.c.due).where(
                waits.c.instance_id.in_(part),
                sa.or_(waits.c.deadline <= now, has_event),
            )
        ).all()
        now_due = {(row.instance_id, row.seq) for row in found}
        due |= {row.instance_id for row in found}
        for instance_id, seq in sorted(now_due):
            c.execute(
                sa.update(waits)
                .where(waits.c.instance_id == instance_id, waits.c.seq == seq)
                .values(due=True)
            )
        quiet = [instance_id for instance_id in part if instance_id not in due]
        if quiet:
            c.execute(sa.update(waits).where(waits.c.instance_id.in_(quiet), waits.c.due).values(due=False))
            c.execute(
                sa.update(instances)
                .where(instances.c.id.in_(quiet))
                .values(owner=None, state=State.WAITING, updated_at=now)
            )
    for turn in turns:
        if turn.instance_id in due:
            results[turn.instance_id] = TurnResult(Applied.KEPT, results[turn.instance_id].signals)


def _look(c: sa.Connection, turns: Sequence[Turn], results: dict[str, TurnResult]) -> None:
    for turn in turns:
        seqs = [wait.seq for wait in turn.waits if wait.hash is not None]
        found = (
            c.execute(
                sa.select(waits.c.seq).where(
                    waits.c.instance_id == turn.instance_id, waits.c.seq.in_(seqs), has_event
                )
            )
            .scalars()
            .all()
        )
        if found:
            c.execute(
                sa.update(waits)
                .where(waits.c.instance_id == turn.instance_id, waits.c.seq.in_(found))
                .values(due=True)
            )
            results[turn.instance_id] = TurnResult(Applied.KEPT, results[turn.instance_id].signals)


# ---------------------------------------------------------------------------------------------- claim and load

_CLAIMED = (
    instances.c.id,
    instances.c.app,
    instances.c.workflow,
    instances.c.version,
    instances.c.fence,
    instances.c.signals,
    instances.c.chain,
    instances.c.chain_started_at,
    instances.c.created_at,
    instances.c.start_event,
    instances.c.recoveries,
    instances.c.input,
    instances.c.carried,
    instances.c.live_key,
)


def claim(
    c: sa.Connection, traits: Traits, app: str, workflows: Sequence[str], worker: str, limit: int, now: int
) -> list[ClaimedInstance]:
    """Own runnable instances."""
    alive = sa.exists(sa.select(1).where(workers.c.id == worker, ~workers.c.dead))
    select = (
        sa.select(*_CLAIMED)
        .where(
            instances.c.state == State.RUNNABLE,
            instances.c.app == app,
            instances.c.workflow.in_(workflows),
            instances.c.available_at <= now,
            alive,
        )
        .order_by(instances.c.priority.desc(), instances.c.available_at)
        .limit(limit)
    )
    rows = c.execute(traits.lock_rows(select, skip_locked=traits.skips_locked)).all()
    if rows:
        c.execute(
            sa.update(instances)
            .where(instances.c.id.in_([row.id for row in rows]))
            .values(state=State.RUNNING, owner=worker, fence=instances.c.fence + 1, updated_at=now)
        )
    return [_claimed(row, row.fence + 1) for row in rows]


def owned(c: sa.Connection, worker: str) -> list[ClaimedInstance]:
    """What a worker owns."""
    rows = c.execute(
        sa.select(*_CLAIMED).where(instances.c.owner == worker, instances.c.state == State.RUNNING)
    )
    return [_claimed(row, row.fence) for row in rows]


def _claimed(row: Any, fence: int) -> ClaimedInstance:
    return ClaimedInstance(
        row.id,
        row.app,
        row.workflow,
        row.version,
        fence,
        row.signals,
        row.chain,
        row.chain_started_at,
        row.created_at,
        row.start_event,
        row.recoveries,
        row.input,
        row.carried,
        row.live_key,
    )


def load(c: sa.Connection, ids: Sequence[str], *, with_history: bool) -> dict[str, LoadedInstance]:
    """Signals first, then history, then waits with their events: what comes later raises ``signals`` again."""
    loaded: dict[str, LoadedInstance] = {}
    for part in chunked(sorted(ids)):
        signals = {
            row.id: row.signals
            for row in c.execute(
                sa.select(instances.c.id, instances.c.signals).where(instances.c.id.in_(part))
            )
        }
        records: dict[str, list[Record]] = {one: [] for one in signals}
        if with_history:
            rows = c.execute(
                sa.select(history).where(history.c.instance_id.in_(part)).order_by(history.c.pos)
            )
            for row in rows:
                records[row.instance_id].append(record_of(row))
        rows_of_waits = _waits(c, part)
        for one, seen in signals.items():
            loaded[one] = LoadedInstance(tuple(records[one]), tuple(rows_of_waits.get(one, ())), seen)
    return loaded


def _waits(c: sa.Connection, ids: Sequence[str]) -> dict[str, list[WaitRow]]:
    chooses = sa.and_(waits.c.due, waits.c.kind == WaitKind.EVENT, shape_ready)
    rows = c.execute(
        sa.select(waits, sa.case((chooses, _first_event), else_=None).label("first"))
        .where(waits.c.instance_id.in_(ids))
        .order_by(waits.c.seq)
    ).all()
    seqs = sorted({row.first for row in rows if row.first is not None})
    chosen: dict[int, EventRow] = {}
    for part in chunked(seqs):
        chosen.update(
            {row.seq: event_row(row) for row in c.execute(sa.select(events).where(events.c.seq.in_(part)))}
        )
    found: dict[str, list[WaitRow]] = {}
    for row in rows:
        found.setdefault(row.instance_id, []).append(
            WaitRow(
                row.seq,
                WaitKind(row.kind),
                row.name,
                row.hash,
                row.cursor,
                row.deadline,
                bool(row.due),
                row.detail,
                chosen.get(row.first) if row.first is not None else None,
            )
        )
    return found


__all__ = ["claim", "flush", "load", "outbox_values", "owned"]
