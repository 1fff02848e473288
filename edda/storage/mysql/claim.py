"""Claim and load: become the owner of runnable instances, then read what is needed to run them.

Locks of a claim: the worker's row (shared), then instances, of which it waits for none (SKIP LOCKED), so that it can
be part of no deadlock. ``load`` locks nothing; its statements are later ones, each with a snapshot of its own, and go
in the order signals, history, waits: what changes in between raises ``signals`` again and makes the owner look again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from edda.storage.mysql.connection import Link, Row
from edda.storage.mysql.statements import COMMIT, ROLLBACK, Statement, Value, marks, pairs, start_transaction
from edda.storage.rows import ClaimedInstance, EventRow, LoadedInstance, Record, WaitKind, WaitRow

_CLAIMED = (
    "id, app, workflow, version, fence, signals, chain, chain_started_at, created_at, start_event, recoveries, "
    "input, carried, live_key"
)

#: What ``event_row`` reads.
EVENT = "seq, type, source, event_id, attributes, data, content_type, addressee, accepted_at"


def claim_candidates(
    app: str, workflows: Sequence[str], limit: int, versions: Sequence[tuple[str, str]] = ()
) -> Statement:
    """Lock the next runnable instances, in the order of the index; rows that others have locked are left out."""
    these = pairs("workflow", "version", versions) if versions else Statement("FALSE")
    return Statement(
        f"SELECT {_CLAIMED} FROM edda_instances FORCE INDEX (edda_instances_runnable) "
        f"WHERE state = 'runnable' AND app = %s AND workflow IN {marks(len(workflows))} "
        f"AND (version IS NULL OR {these.text}) "
        "AND available_at <= @edda_now ORDER BY priority DESC, available_at LIMIT %s FOR UPDATE SKIP LOCKED",
        (app, *workflows, *these.values, limit),
    )


#: Look-ups per statement; each is a member of a UNION.
_LOOK_UPS = 200


async def claim(
    link: Link,
    offset_us: int,
    app: str,
    workflows: Sequence[str],
    worker: str,
    limit: int,
    versions: Sequence[tuple[str, str]],
) -> list[ClaimedInstance]:
    """One transaction of two packets; see the contract."""
    alive, rows = (
        await link.run(
            *start_transaction(offset_us),
            # Shared: whoever declares this worker dead waits for our commit and then finds what was claimed, or has
            # committed before, and then nothing is claimed.
            Statement("SELECT id FROM edda_workers WHERE id = %s AND dead = 0 LOCK IN SHARE MODE", (worker,)),
            claim_candidates(app, workflows, limit, versions),
        )
    )[2:]
    if not alive.rows or not rows.rows:
        await link.run(ROLLBACK)
        return []
    ids = [row[0] for row in rows.rows]
    await link.run(
        Statement(
            "UPDATE edda_instances SET state = 'running', owner = %s, fence = fence + 1, updated_at = @edda_now "
            f"WHERE id IN {marks(len(ids))}",
            (worker, *ids),
        ),
        COMMIT,
    )
    return [_claimed(row, 1) for row in rows.rows]


async def owned(link: Link, worker: str) -> list[ClaimedInstance]:
    """What the worker owns, once no claim of its is under way any more: one holds the worker's row until it is over.

    The server may be busy with a claim whose connection is lost: whoever does not wait for it never hears of it.
    """
    query = f"SELECT {_CLAIMED} FROM edda_instances WHERE owner = %s AND state = 'running' ORDER BY id"
    _, result = await link.run(
        Statement("SELECT id FROM edda_workers WHERE id = %s FOR UPDATE", (worker,)),
        Statement(query, (worker,)),
    )
    return [_claimed(row, 0) for row in result.rows]


async def load(link: Link, ids: Sequence[str], *, history: bool) -> dict[str, LoadedInstance]:
    """One packet, and two more if event waits are due."""
    among = marks(len(ids))
    statements = [
        Statement(f"SELECT id, chain, signals FROM edda_instances WHERE id IN {among}", ids),
        Statement(
            "SELECT w.instance_id, w.seq, w.kind, w.name, w.hash, w.cursor, w.skip, w.deadline, w.due, w.detail, "
            "COALESCE(s.ready, 1) FROM edda_waits w LEFT JOIN edda_shapes s ON s.id = w.shape_id "
            f"WHERE w.instance_id IN {among} ORDER BY w.instance_id, w.seq",
            ids,
        ),
    ]
    if history:
        records = (
            "SELECT instance_id, seq, pos, kind, name, payload, content_type, args_hash, recorded_at "
            f"FROM edda_history WHERE instance_id IN {among} ORDER BY instance_id, pos"
        )
        statements.insert(1, Statement(records, ids))
    results = await link.run(*statements)
    found = {row[0]: row for row in results[0].rows}
    histories: dict[bytes, list[Record]] = defaultdict(list)
    for row in results[1].rows if history else ():
        histories[row[0]].append(_record(row))
    events = await _first_events(link, results[-1].rows, {one: row[1] for one, row in found.items()})
    waits: dict[bytes, list[WaitRow]] = defaultdict(list)
    for row in results[-1].rows:
        waits[row[0]].append(_wait(row, events.get((row[0], row[1]))))
    return {
        one.decode(): LoadedInstance(tuple(histories[one]), tuple(waits[one]), row[2])
        for one, row in found.items()
    }


# ---------------------------------------------------------------------------------------------- events

#: Where to look: hash, addressee, and after which sequence number.
_LookUp = tuple[bytes, bytes, int]


def first_events(look_ups: Sequence[_LookUp]) -> Statement:
    """For each look-up its number and the sequence number of the first event, or NULL.

    As MIN with constants, which both servers answer with one step into the index. From a joined column they take no
    start of a range, and would walk from the oldest event of the type to the cursor each time.
    """
    one = "SELECT %s AS number, MIN(seq) FROM edda_event_keys WHERE hash = %s AND addressee = %s AND seq > %s"
    values: list[Value] = []
    for number, look_up in enumerate(look_ups):
        values += [number, *look_up]
    return Statement(" UNION ALL ".join([one] * len(look_ups)), values)


async def _first_events(
    link: Link, waits: Sequence[Row], chains: dict[bytes, bytes]
) -> dict[tuple[bytes, int], EventRow]:
    """The event that each due event wait gets; two packets, however many there are."""
    wanted: dict[tuple[bytes, int], list[_LookUp]] = {}
    skipped: dict[tuple[bytes, int], int] = {}
    for instance, seq, kind, _, key, cursor, skip, _, due, _, ready in waits:
        if kind == b"event" and due and ready and key is not None and instance in chains:
            # Where the one to skip comes first, the one behind it is needed.
            afters = (cursor, skip) if skip > cursor else (cursor,)
            addressees = (b"", chains[instance])
            wanted[instance, seq] = [(key, addressee, after) for addressee in addressees for after in afters]
            skipped[instance, seq] = skip
    # Waits that wait for the same thing ask once.
    look_ups = list(dict.fromkeys(look_up for some in wanted.values() for look_up in some))
    if not look_ups:
        return {}
    parts = [look_ups[begin : begin + _LOOK_UPS] for begin in range(0, len(look_ups), _LOOK_UPS)]
    answers = await link.run(*map(first_events, parts))
    found: dict[_LookUp, int] = {
        part[number]: seq
        for part, answer in zip(parts, answers, strict=True)
        for number, seq in answer.rows
        if seq is not None
    }
    if not found:
        return {}
    seqs = sorted(set(found.values()))
    (answer,) = await link.run(
        Statement(
            f"SELECT {EVENT} FROM edda_events WHERE seq IN {marks(len(seqs))}",
            seqs,
        )
    )
    events = {row[0]: event_row(row) for row in answer.rows}
    chosen: dict[tuple[bytes, int], EventRow] = {}
    for wait, some in wanted.items():
        candidates = {found[look_up] for look_up in some if look_up in found} - {skipped[wait]}
        if candidates and min(candidates) in events:
            chosen[wait] = events[min(candidates)]
    return chosen


# ---------------------------------------------------------------------------------------------- rows


def _claimed(row: Row, raised: int) -> ClaimedInstance:
    return ClaimedInstance(
        id=row[0].decode(),
        app=row[1].decode(),
        workflow=row[2].decode(),
        version=_text(row[3]),
        fence=row[4] + raised,
        signals=row[5],
        chain=row[6].decode(),
        chain_started_at=row[7],
        created_at=row[8],
        start_event=row[9],
        recoveries=row[10],
        input=row[11],
        carried=row[12],
        live_key=row[13],
    )


def _record(row: Row) -> Record:
    _, seq, pos, kind, name, payload, content_type, args_hash, recorded_at = row
    return Record(seq, pos, kind.decode(), name, payload, _text(content_type), args_hash, recorded_at)


def _wait(row: Row, event: EventRow | None) -> WaitRow:
    _, seq, kind, name, key, cursor, _, deadline, due, detail, _ = row
    return WaitRow(seq, WaitKind(kind.decode()), name, key, cursor, deadline, bool(due), detail, event)


def event_row(row: Row) -> EventRow:
    """An event, from ``EVENT`` columns."""
    return EventRow(
        seq=row[0],
        type=row[1].decode(),
        source=row[2],
        event_id=row[3],
        attributes=row[4],
        data=row[5],
        content_type=row[6],
        addressee=_text(row[7]),
        accepted_at=row[8],
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
