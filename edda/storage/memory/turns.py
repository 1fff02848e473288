"""The flush, turn by turn, and what goes back when a worker dies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from edda.errors import StorageDataError
from edda.storage import schema
from edda.storage.memory.tables import Instance, Outgoing, Tables, Wait, check_keys
from edda.storage.rows import (
    Applied,
    EventRow,
    FlushResult,
    OutboxMessage,
    Release,
    State,
    Turn,
    TurnResult,
    Unread,
    WaitKind,
)


def flush(t: Tables, turns: Sequence[Turn]) -> FlushResult:
    """Starts, then verdicts, then what the turns bring, then their releases."""
    for turn in turns:
        if turn.start is not None:
            t.insert(replace(turn.start, owner=turn.owner))
    refused = [_judge(t, turn) for turn in turns]
    for turn, no in zip(turns, refused, strict=True):
        if no is None:
            _write(t, turn)
    results = [no or _release(t, turn) for turn, no in zip(turns, refused, strict=True)]
    return FlushResult(t.now, tuple(results))


def _judge(t: Tables, turn: Turn) -> TurnResult | None:
    """None: ours to write."""
    refused = Applied.EXISTS if turn.start is not None else Applied.LOST
    row = t.instances.get(turn.instance_id)
    if row is None:
        return TurnResult(refused, 0)
    released = row.owner is None and row.fence == turn.fence
    if released and turn.release is not Release.KEEP and turn.start is None:
        return TurnResult(Applied.APPLIED, row.signals)
    if (row.fence, row.owner) != (turn.fence, turn.owner):
        return TurnResult(refused, row.signals)
    if turn.records:
        fence, _ = t.history.get((turn.instance_id, turn.records[0].seq), (turn.fence, None))
        if fence != turn.fence:
            return TurnResult(Applied.LOST, row.signals)
    return None


def _write(t: Tables, turn: Turn) -> None:
    """What a turn brings, but for its release; nothing if an earlier try has written it."""
    mine = turn.instance_id
    if turn.records and (mine, turn.records[0].seq) in t.history:
        return
    for record in turn.records:
        check_keys(record, schema.history)
        if (mine, record.seq) in t.history:
            raise StorageDataError(f"record {record.seq} of {mine!r} exists already. Nothing was written.")
        t.history[mine, record.seq] = turn.fence, replace(record, recorded_at=record.recorded_at or t.now)
    for new in turn.waits:
        cursor = new.cursor
        if new.since_us is not None:
            older = [seq for seq, event in t.events.items() if event.accepted_at < new.since_us]
            cursor = max(cursor, *older, 0)
        deadline = new.deadline_us if new.delay_us is None else t.now + new.delay_us
        t.waits[mine, new.seq] = Wait(new, t.instances[mine].chain, cursor, deadline)
    for seq in turn.drop_waits:
        t.waits.pop((mine, seq), None)
    enqueue(t, turn.outbox)
    for child in turn.children:
        t.insert(child)
    if turn.reset_recoveries:
        t.update(mine, recoveries=0)


def enqueue(t: Tables, messages: Iterable[OutboxMessage]) -> None:
    """New outbox rows."""
    for message in messages:
        check_keys(message, schema.outbox)
        t.outbox[t.next_id()] = Outgoing(message, t.now, t.now)


def _release(t: Tables, turn: Turn) -> TurnResult:
    mine = turn.instance_id
    signals = t.instances[mine].signals
    applied, kept = TurnResult(Applied.APPLIED, signals), TurnResult(Applied.KEPT, signals)
    let_go: dict[str, Any] = {"owner": None, "updated_at": t.now}
    if turn.release is Release.YIELD:
        t.update(mine, **let_go, state=State.RUNNABLE, available_at=t.now)
        return applied
    if turn.end_state is State.PAUSED or (turn.release is Release.END and signals == turn.signals):
        unread = _first_unread(t, turn)
        if unread is None:
            _end(t, turn, let_go)
            return applied
        kept = replace(kept, unread=unread)
    elif turn.release is Release.PARK and signals == turn.signals:
        if _any_due(t, mine):
            return kept
        t.update(mine, **let_go, state=State.WAITING)
        return applied
    # The owner stays, and must not miss what came before it registered its waits.
    return kept if _look(t, turn) or turn.release is not Release.KEEP else applied


def _first_unread(t: Tables, turn: Turn) -> EventRow | None:
    unread: Unread | None = turn.unread
    if unread is None or turn.successor is not None or turn.end_state is State.PAUSED:
        return None
    seqs = {seq for addressee, seq in t.keys.get(unread.hash, ()) if not addressee and seq > unread.after}
    return t.events.get(min(seqs - unread.received, default=0))


def _end(t: Tables, turn: Turn, let_go: dict[str, Any]) -> None:
    mine = turn.instance_id
    state = turn.end_state or State.COMPLETED
    t.update(mine, **let_go, state=state, output=turn.output, output_type=turn.output_type, error=turn.error)
    if state is State.PAUSED:
        return
    t.update(mine, ended_at=t.now, live_key=None)
    t.waits = {key: wait for key, wait in t.waits.items() if key[0] != mine}
    if turn.successor is not None:
        t.insert(turn.successor)


def _any_due(t: Tables, instance_id: str) -> bool:
    """Look at all waits of an instance that would park."""
    found = False
    for key, wait in t.waits_of(instance_id):
        passed = wait.deadline is not None and wait.deadline <= t.now
        fired = wait.due and wait.new.kind is not WaitKind.EVENT
        due = passed or fired or t.first_event(wait) is not None
        t.waits[key] = replace(wait, due=due)
        found = found or due
    return found


def _look(t: Tables, turn: Turn) -> bool:
    """Look at the event waits that a turn has registered and whose owner stays."""
    found = False
    for key in [(turn.instance_id, new.seq) for new in turn.waits if new.kind is WaitKind.EVENT]:
        wait = t.waits.get(key)
        if wait is not None and t.first_event(wait) is not None:
            t.waits[key] = replace(wait, due=True)
            found = True
    return found


def give_back(t: Tables, owners: Iterable[str], limit: int | None, *, recovered: bool) -> list[Instance]:
    """Instances of these owners become runnable under a raised fence."""
    gone = set(owners)
    theirs = sorted(row.new.id for row in t.instances.values() if row.owner in gone)[:limit]
    return [
        t.update(
            one,
            owner=None,
            state=State.RUNNABLE,
            fence=t.instances[one].fence + 1,
            recoveries=t.instances[one].recoveries + recovered,
            available_at=t.now,
            updated_at=t.now,
        )
        for one in theirs
    ]
