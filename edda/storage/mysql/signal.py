"""Marking waits due and signalling their instances: what accept, timers and shapes have in common.

Anyone may do it again at any time: it marks what is not marked yet, under the locks of the instances, in id order. It
never says which event a wait gets; the claim, or the owner's next turn, chooses.
"""

from __future__ import annotations

from collections.abc import Sequence

from edda.storage.mysql.connection import Link, Result
from edda.storage.mysql.statements import COMMIT, ROLLBACK, Statement, Value, marks, pairs, start_transaction

# By the newest key and not by the first one after the cursor: MySQL takes no start of a range from another table's
# column, and would walk all keys of the hash up to the cursor. Ordered by the hash, too, which is the same for all:
# without it MySQL, and with all three columns MariaDB, would read every key of the hash.
_NEWEST = (
    "COALESCE((SELECT k.seq FROM edda_event_keys k WHERE k.hash = w.hash AND k.addressee = {} AND k.seq <> w.skip "
    "ORDER BY k.hash DESC, k.seq DESC LIMIT 1), 0) > w.cursor"
)

#: Condition on a wait ``w``: its shape is ready and it has an unreceived event.
HAS_EVENT = (
    "(w.kind = 'event' AND w.hash IS NOT NULL "
    "AND NOT EXISTS (SELECT 1 FROM edda_shapes s WHERE s.id = w.shape_id AND s.ready = 0) "
    "AND (" + _NEWEST.format("''") + " OR " + _NEWEST.format("w.chain") + "))"
)


def lock_instances(ids: Sequence[Value], columns: str) -> Statement:
    """Lock instance rows in id order, which is the order of the primary key.

    By force: on a small table the optimizer would rather read all of it, and wait for locks on rows that nobody asked
    for.
    """
    return Statement(
        f"SELECT {columns} FROM edda_instances FORCE INDEX (PRIMARY) "
        f"WHERE id IN {marks(len(ids))} ORDER BY id FOR UPDATE",
        ids,
    )


def signal(waits: Sequence[tuple[Value, Value]], which: Statement) -> tuple[Statement, Statement, Statement]:
    """Lock the instances (answers their apps), signal them, mark these waits due.

    Args:
        waits: (instance, seq).
        which: condition on ``w`` that these waits fulfil. Instances that have no such wait any more, because somebody
            else was faster, are not signalled again.
    """
    ids = sorted({instance for instance, _ in waits}, key=str)
    among = marks(len(ids))
    these = pairs("w.instance_id", "w.seq", waits)
    return (
        lock_instances(ids, "app"),
        # The assignments are made from left to right: ``state`` last, for the others look at it.
        Statement(
            "UPDATE edda_instances i SET i.signals = i.signals + 1, "
            "i.available_at = IF(i.state = 'waiting', @edda_now, i.available_at), "
            "i.updated_at = IF(i.state = 'waiting', @edda_now, i.updated_at), "
            f"i.state = IF(i.state = 'waiting', 'runnable', i.state) WHERE i.id IN {among} AND i.ended_at IS NULL "
            "AND EXISTS (SELECT 1 FROM edda_waits w FORCE INDEX (PRIMARY) "
            f"WHERE w.instance_id = i.id AND w.due = 0 AND {which.text})",
            [*ids, *which.values],
        ),
        Statement(f"UPDATE edda_waits w SET w.due = 1 WHERE {these.text} AND w.due = 0", these.values),
    )


def woken_apps(locked: Result) -> set[str]:
    """The apps of the instances that ``signal`` has locked."""
    return {row[0].decode() for row in locked.rows}


def find(index: str, which: Statement, limit: int) -> Statement:
    """The keys of up to ``limit`` waits that are not due yet, and of one more if there are more."""
    return Statement(
        f"SELECT w.instance_id, w.seq FROM edda_waits w FORCE INDEX ({index}) "
        f"WHERE w.due = 0 AND {which.text} LIMIT %s",
        [*which.values, limit + 1],
    )


async def mark_due(
    link: Link, offset_us: int, hashes: Sequence[bytes], limit: int
) -> tuple[frozenset[str], bool]:
    """Waits of these hashes that have an unreceived event and are not due yet: one transaction of two packets.

    What accepts had left of them is read before the look and forgotten behind it: an accept that comes meanwhile leaves
    rows that this look has not answered.
    """
    distinct = sorted(set(hashes))
    among = f"IN {marks(len(distinct))}"
    which = Statement(f"w.hash {among} AND {HAS_EVENT}", distinct)
    left = Statement(
        f"SELECT hash, seq FROM edda_unmarked FORCE INDEX (PRIMARY) WHERE hash {among} ORDER BY hash, seq",
        distinct,
    )
    *_, unmarked, found = await link.run(
        *start_transaction(offset_us), left, find("edda_waits_hash", which, limit)
    )
    more = len(found.rows) > limit
    waits = [(row[0], row[1]) for row in found.rows[:limit]]
    done = [] if more else [(row[0], row[1]) for row in unmarked.rows]
    if not waits and not done:
        await link.run(ROLLBACK)
        return frozenset(), False
    signals = list(signal(waits, which)) if waits else []
    answers = await link.run(*signals, *([forget(done)] if done else []), COMMIT)
    return frozenset(woken_apps(answers[0]) if waits else ()), more


def forget(unmarked: Sequence[tuple[Value, Value]]) -> Statement:
    """Delete these rows; by force through the primary key, which two who do it at once then follow in one order."""
    these = pairs("u.hash", "u.seq", unmarked)
    return Statement(
        f"DELETE u FROM edda_unmarked u FORCE INDEX (PRIMARY) WHERE {these.text}",
        these.values,
    )


async def fire_timers(link: Link, offset_us: int, limit: int) -> tuple[frozenset[str], int]:
    """Waits whose deadline has passed: one transaction of two packets."""
    which = Statement("w.deadline <= @edda_now")
    *_, found = await link.run(*start_transaction(offset_us), find("edda_waits_deadline", which, limit))
    waits = [(row[0], row[1]) for row in found.rows[:limit]]
    if not waits:
        await link.run(ROLLBACK)
        return frozenset(), 0
    locked, _, marked, _ = await link.run(*signal(waits, which), COMMIT)
    return frozenset(woken_apps(locked)), marked.changed
