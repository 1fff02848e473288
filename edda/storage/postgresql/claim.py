"""Claim and load: become the owner of runnable instances, then read what is needed to run them.

A claim locks the worker's row (shared), then instances, of which it waits for none (SKIP LOCKED), so that it can be
part of no deadlock. ``load`` locks nothing and comes in later statements: one that claims and reads would read what was
there before it waited. Signals, waits and events are of one moment; what changes later raises ``signals`` again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter

from edda.storage.postgresql.connection import Link, Row
from edda.storage.postgresql.rows import CLOCK, event_row
from edda.storage.rows import ClaimedInstance, LoadedInstance, Record, WaitKind, WaitRow

_CLAIMED = (
    "i.id, i.app, i.workflow, i.version, i.fence, i.signals, i.chain, i.chain_started_at, i.created_at, i.start_event, "
    "i.recoveries, i.input, i.carried, i.live_key"
)

# Whoever declares this worker dead waits for our commit and then finds what was claimed, or has committed before, and
# then the lock shows the row as it is now: nothing is claimed. Materialized, because a sub-select that is run again
# locks more than the limit.
CLAIM = f"""
WITH {CLOCK}, alive AS MATERIALIZED (
    SELECT w.id FROM edda_workers w WHERE w.id = $2 AND NOT w.dead FOR SHARE
), chosen AS MATERIALIZED (
    SELECT i.id FROM edda_instances i
    WHERE i.state = 'runnable' AND i.app = $3 AND i.workflow = ANY ($4::text[])
      AND (i.version IS NULL OR (i.workflow, i.version) IN (
          SELECT v.workflow, v.version FROM unnest($6::text[], $7::text[]) AS v(workflow, version)))
      AND i.available_at <= (SELECT now FROM clock) AND EXISTS (SELECT 1 FROM alive)
    ORDER BY i.priority DESC, i.available_at
    LIMIT $5
    FOR NO KEY UPDATE OF i SKIP LOCKED
)
UPDATE edda_instances i
SET state = 'running', owner = $2, fence = i.fence + 1, updated_at = (SELECT now FROM clock)
WHERE i.id = ANY (ARRAY(SELECT c.id FROM chosen c))
RETURNING {_CLAIMED}, i.priority, i.available_at
"""

# The server may be busy with a claim whose connection is lost: whoever does not wait for it never hears of it.
NO_CLAIM = "SELECT w.id FROM edda_workers w WHERE w.id = $1 FOR NO KEY UPDATE"

OWNED = f"SELECT {_CLAIMED} FROM edda_instances i WHERE i.owner = $1 AND i.state = 'running' ORDER BY i.id"

# OFFSET 0 keeps each look-up one by its key, whatever the planner thinks of the tables' sizes.
WAITS = """
SELECT i.id, i.signals, w.seq AS wait, w.kind, w.name, w.hash, w.cursor, w.deadline, w.due, w.detail,
       e.seq, e.type, e.source, e.event_id, e.attributes, e.data, e.content_type, e.addressee, e.accepted_at
FROM edda_instances i
LEFT JOIN LATERAL (SELECT * FROM edda_waits w WHERE w.instance_id = i.id OFFSET 0) w ON true
LEFT JOIN LATERAL edda_first_event_1(
    CASE WHEN w.due AND w.kind = 'event' THEN w.hash END, w.chain, w.cursor, w.skip, w.shape_id) f ON true
LEFT JOIN LATERAL (SELECT * FROM edda_events e WHERE e.seq = f.seq OFFSET 0) e ON true
WHERE i.id = ANY ($1::text[])
"""

HISTORY = """
SELECT h.instance_id, h.seq, h.pos, h.kind, h.name, h.payload, h.content_type, h.args_hash, h.recorded_at
FROM edda_history h WHERE h.instance_id = ANY ($1::text[])
"""


async def claim(
    link: Link,
    offset_us: int,
    app: str,
    workflows: Sequence[str],
    worker: str,
    limit: int,
    versions: Sequence[tuple[str, str]],
) -> list[ClaimedInstance]:
    """One transaction; see the contract."""
    pinned = [name for name, _ in versions], [version for _, version in versions]
    rows = await link.fetch(CLAIM, offset_us, worker, app, list(workflows), limit, *pinned)
    rows.sort(key=lambda row: (-row["priority"], row["available_at"]))
    return [_claimed(row) for row in rows]


async def owned(link: Link, worker: str) -> list[ClaimedInstance]:
    """What the worker owns, once no claim of its is under way any more: one holds the worker's row until it is over."""
    await link.fetch(NO_CLAIM, worker)
    return [_claimed(row) for row in await link.fetch(OWNED, worker)]


async def load(link: Link, ids: Sequence[str], *, history: bool) -> dict[str, LoadedInstance]:
    """Two statements, or one without history. Rows are sorted here: the server would sort payloads with them."""
    signals: dict[str, int] = {}
    waits: dict[str, list[WaitRow]] = defaultdict(list)
    for row in await link.fetch(WAITS, list(ids)):
        signals[row["id"]] = row["signals"]
        if row["wait"] is not None:
            waits[row["id"]].append(_wait(row))
    records: dict[str, list[Record]] = defaultdict(list)
    for row in await link.fetch(HISTORY, list(ids)) if history else ():
        records[row["instance_id"]].append(_record(row))
    return {
        one: LoadedInstance(
            tuple(sorted(records[one], key=attrgetter("pos"))),
            tuple(sorted(waits[one], key=attrgetter("seq"))),
            seen,
        )
        for one, seen in signals.items()
    }


# ---------------------------------------------------------------------------------------------- rows


def _claimed(row: Row) -> ClaimedInstance:
    return ClaimedInstance(
        id=row["id"],
        app=row["app"],
        workflow=row["workflow"],
        version=row["version"],
        fence=row["fence"],
        signals=row["signals"],
        chain=row["chain"],
        chain_started_at=row["chain_started_at"],
        created_at=row["created_at"],
        start_event=row["start_event"],
        recoveries=row["recoveries"],
        input=row["input"],
        carried=row["carried"],
        live_key=row["live_key"],
    )


def _record(row: Row) -> Record:
    _, seq, pos, kind, name, payload, content_type, args_hash, recorded_at = row
    return Record(seq, pos, kind, name, payload, content_type, args_hash, recorded_at)


def _wait(row: Row) -> WaitRow:
    return WaitRow(
        seq=row["wait"],
        kind=WaitKind(row["kind"]),
        name=row["name"],
        hash=row["hash"],
        cursor=row["cursor"],
        deadline_us=row["deadline"],
        due=row["due"],
        detail=row["detail"],
        event=None if row["seq"] is None else event_row(row),
    )
