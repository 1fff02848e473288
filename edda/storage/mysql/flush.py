"""The turn: turns of many instances in one transaction, two packets whatever they hold.

First packet:  [accept lock, shared] · new instances · lock the instance rows in id order · read what decides.
Second packet: records, waits, outbox, children · what the waits have missed · releases, successors · COMMIT.
Between them, only if a keyed run would leave one behind: read the event.

Whether a record exists already is asked only after its insert was refused: it costs most flushes nothing.

The decisions in between need no third packet, because nothing they rest on can change: fence, owner and ``signals``
are locked, and no event is accepted while the accept lock is held. Each statement has a snapshot of its own (READ
COMMITTED), so what accept committed while the first packet waited for its lock is seen by the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pymysql import err
from pymysql.constants import ER

from edda.storage.mysql import rows
from edda.storage.mysql.claim import EVENT, event_row
from edda.storage.mysql.connection import Link, Row
from edda.storage.mysql.signal import HAS_EVENT, lock_instances
from edda.storage.mysql.statements import COMMIT, Rendered, Statement, Value, marks, pairs, start_transaction
from edda.storage.rows import (
    Applied,
    EventRow,
    FlushResult,
    Release,
    State,
    Turn,
    TurnResult,
    WaitKind,
)

#: Outcomes written by one UPDATE; each is one member of a UNION.
_ENDS_PER_STATEMENT = 100

#: Look-ups of unread events by one SELECT; each is one member of a UNION.
_LOOK_UPS = 100


class RepeatedFlushError(Exception):
    """A record exists already: an earlier try was committed, or another owner has written it. Internal."""


@dataclass(frozen=True, slots=True)
class _Locked:
    """What the first packet found, under locks."""

    now: int
    instances: dict[str, Row]  # owner, fence, signals, and the chain if waits are registered
    records: dict[tuple[str, int], int]  # first records of turns that exist already, and their fence
    floors: dict[int, int]  # a time, and the last event accepted before it
    unread: dict[str, EventRow]  # what keyed runs would leave behind


async def flush(link: Link, offset_us: int, turns: Sequence[Turn], *, careful: bool) -> FlushResult:
    """One transaction of two packets; see the contract.

    Raises RepeatedFlushError if a record exists already and nobody has looked: run it again, ``careful``.
    """
    locked = await _lock(link, offset_us, turns, careful=careful)
    results = [_judge(turn, locked) for turn in turns]
    ours = [turn for turn, result in zip(turns, results, strict=True) if result is None]
    releases = _Releases.of(ours, locked)
    max_bytes = link.max_packet // 2
    statements = [*_writes(_unwritten(ours, locked), locked, max_bytes), *releases.statements(max_bytes)]
    try:
        answers = await link.run(*statements, COMMIT)
    except err.IntegrityError as error:
        # Only records are inserted without a word on what exists already.
        if careful or error.args[0] != ER.DUP_ENTRY:
            raise
        raise RepeatedFlushError from error
    # The two questions of the releases, if they ask any, stand right before the COMMIT.
    kept = {row[0].decode() for answer in answers[-1 - releases.questions : -1] for row in answer.rows}
    kept |= releases.kept
    return FlushResult(
        locked.now,
        tuple(
            result
            or TurnResult(
                Applied.KEPT if turn.instance_id in kept else Applied.APPLIED,
                locked.instances[turn.instance_id][2],
                releases.unread.get(turn.instance_id),
            )
            for turn, result in zip(turns, results, strict=True)
        ),
    )


# ---------------------------------------------------------------------------------------------- first packet


async def _lock(link: Link, offset_us: int, turns: Sequence[Turn], *, careful: bool) -> _Locked:
    ids = sorted(turn.instance_id for turn in turns)
    firsts: list[tuple[Value, Value]] = [
        (t.instance_id, t.records[0].seq) for t in turns if careful and t.records
    ]
    times = sorted({wait.since_us for t in turns for wait in t.waits if wait.since_us is not None})
    columns = "id, owner, fence, signals" + (", chain" if any(t.waits for t in turns) else "")
    begin, read_clock = start_transaction(offset_us)
    statements: list[Statement | Rendered] = [begin]
    if any(_meets_events(turn) for turn in turns):
        statements.append(Statement("SELECT id FROM edda_accept WHERE id = 1 LOCK IN SHARE MODE"))
    statements.append(read_clock)
    starts = [replace(t.start, owner=t.owner) for t in turns if t.start is not None]
    statements += rows.instances(starts, link.max_packet // 2)
    tail = [Statement("SELECT @edda_now"), lock_instances(ids, columns)]
    if firsts:
        tail.append(_first_records(firsts))
    tail += [_last_before(time) for time in times]
    keyed = [turn for turn in turns if _leaves_nothing_unread(turn)]
    parts = [keyed[begin : begin + _LOOK_UPS] for begin in range(0, len(keyed), _LOOK_UPS)]
    answers = await link.run(*statements, *tail, *map(_unread_events, parts))
    unread = [seq for answer in answers[len(answers) - len(parts) :] for (seq,) in answer.rows]
    answers = answers[len(statements) : len(statements) + len(tail)]
    found = answers[2].rows if firsts else ()
    floors = answers[len(tail) - len(times) :]
    return _Locked(
        now=answers[0].rows[0][0],
        instances={row[0].decode(): row[1:] for row in answers[1].rows},
        records={(row[0].decode(), row[1]): row[2] for row in found},
        floors={
            time: answer.rows[0][0] if answer.rows else 0 for time, answer in zip(times, floors, strict=True)
        },
        unread=await _read_unread(link, keyed, unread),
    )


def _first_records(keys: Sequence[tuple[Value, Value]]) -> Statement:
    condition = pairs("instance_id", "seq", keys)
    return Statement(
        f"SELECT instance_id, seq, fence FROM edda_history FORCE INDEX (PRIMARY) WHERE {condition.text}",
        condition.values,
    )


def _last_before(time: int) -> Statement:
    return Statement(
        "SELECT seq FROM edda_events WHERE accepted_at < %s ORDER BY accepted_at DESC, seq DESC LIMIT 1",
        (time,),
    )


def _meets_events(turn: Turn) -> bool:
    # Parking takes the lock whatever waits there are: only the database knows what earlier turns have registered.
    return (
        turn.release is Release.PARK
        or _leaves_nothing_unread(turn)
        or any(wait.kind is WaitKind.EVENT for wait in turn.waits)
    )


def _leaves_nothing_unread(turn: Turn) -> bool:
    return (
        turn.release is Release.END
        and turn.unread is not None
        and turn.successor is None
        and turn.end_state is not State.PAUSED
    )


def _unread_events(keyed: Sequence[Turn]) -> Statement:
    """The first event of each key that nobody has received, or NULL; in the order of the turns."""
    members, values = [], list[Value]()
    for turn in keyed:
        assert turn.unread is not None  # noqa: S101, ``keyed`` are those that have it
        received = sorted(seq for seq in turn.unread.received if seq > turn.unread.after)
        others = f"AND k.seq NOT IN {marks(len(received))} " if received else ""
        members.append(
            "SELECT (SELECT k.seq FROM edda_event_keys k WHERE k.hash = %s AND k.addressee = '' AND k.seq > %s "
            f"{others}ORDER BY k.seq LIMIT 1)"
        )
        values += [turn.unread.hash, turn.unread.after, *received]
    return Statement(" UNION ALL ".join(members), values)


async def _read_unread(
    link: Link, keyed: Sequence[Turn], unread: Sequence[int | None]
) -> dict[str, EventRow]:
    """The events of these numbers; a packet only if there are any."""
    seqs = sorted({seq for seq in unread if seq is not None})
    if not seqs:
        return {}
    query = f"SELECT {EVENT} FROM edda_events WHERE seq IN {marks(len(seqs))}"
    (answer,) = await link.run(Statement(query, seqs))
    events = {row[0]: event_row(row) for row in answer.rows}
    return {turn.instance_id: events[seq] for turn, seq in zip(keyed, unread, strict=True) if seq in events}


# ---------------------------------------------------------------------------------------------- decisions


def _judge(turn: Turn, locked: _Locked) -> TurnResult | None:
    """What became of a turn that is not ours to write; None for one that is."""
    refused = Applied.LOST if turn.start is None else Applied.EXISTS
    row = locked.instances.get(turn.instance_id)
    if row is None:
        return TurnResult(refused, 0)
    owner, fence, signals = row[:3]
    if fence == turn.fence and owner is None and turn.release is not Release.KEEP and turn.start is None:
        # Only a release takes the owner away and leaves the fence: an earlier try of this turn was committed.
        return TurnResult(Applied.APPLIED, signals)
    if fence != turn.fence or owner != turn.owner.encode():
        return TurnResult(refused, signals)
    if turn.records and locked.records.get((turn.instance_id, turn.records[0].seq), fence) != fence:
        return TurnResult(Applied.LOST, signals)
    return None


def _unwritten(ours: Sequence[Turn], locked: _Locked) -> list[Turn]:
    """Without those that an earlier try has written: written twice, a wait that has fired since would come back."""
    return [t for t in ours if not t.records or (t.instance_id, t.records[0].seq) not in locked.records]


# ---------------------------------------------------------------------------------------------- second packet


def _writes(turns: Sequence[Turn], locked: _Locked, max_bytes: int) -> Iterator[Statement | Rendered]:
    yield from rows.history(
        ((t.instance_id, t.fence, record) for t in turns for record in t.records), max_bytes
    )
    yield from rows.waits(
        (
            (
                t.instance_id,
                locked.instances[t.instance_id][3],
                wait,
                max(wait.cursor, locked.floors[wait.since_us] if wait.since_us is not None else 0),
            )
            for t in turns
            for wait in t.waits
        ),
        max_bytes,
    )
    dropped: list[tuple[Value, Value]] = [(t.instance_id, seq) for t in turns for seq in t.drop_waits]
    if dropped:
        condition = pairs("instance_id", "seq", dropped)
        yield Statement(f"DELETE FROM edda_waits WHERE {condition.text}", condition.values)
    yield from rows.outbox([message for t in turns for message in t.outbox], max_bytes)
    yield from rows.instances((child for t in turns for child in t.children), max_bytes)
    recovered = [t.instance_id for t in turns if t.reset_recoveries]
    if recovered:
        yield Statement(
            f"UPDATE edda_instances SET recoveries = 0 WHERE id IN {marks(len(recovered))}", recovered
        )


@dataclass(frozen=True, slots=True)
class _Releases:
    """How the turns end, as far as locked rows decide it."""

    parking: list[str]
    yielding: list[str]
    ending: list[Turn]
    looking: list[tuple[Value, Value]]  # event waits registered by turns whose owner stays
    kept: set[str]
    unread: dict[str, EventRow]  # of those that would have ended

    @classmethod
    def of(cls, turns: Sequence[Turn], locked: _Locked) -> _Releases:
        """Sort the turns by how they end."""
        releases = cls([], [], [], [], set(), {})
        for turn in turns:
            stale = locked.instances[turn.instance_id][2] != turn.signals
            unread = None if stale else locked.unread.get(turn.instance_id)
            if turn.release is Release.YIELD:
                releases.yielding.append(turn.instance_id)
            elif turn.end_state is State.PAUSED or (turn.release is Release.END and not stale and not unread):
                releases.ending.append(turn)
            elif turn.release is Release.PARK and not stale:
                releases.parking.append(turn.instance_id)
            else:
                releases.stay(turn, unread)
        return releases

    def stay(self, turn: Turn, unread: EventRow | None) -> None:
        """The owner goes on, and must not miss what came before it registered its waits."""
        if turn.release is not Release.KEEP:
            self.kept.add(turn.instance_id)
        if unread is not None:
            self.unread[turn.instance_id] = unread
        self.looking.extend((turn.instance_id, w.seq) for w in turn.waits if w.kind is WaitKind.EVENT)

    @property
    def questions(self) -> int:
        """How many of the statements, at the end, answer with ids of instances that are kept."""
        return bool(self.parking) + bool(self.looking)

    def statements(self, max_bytes: int) -> Iterator[Statement | Rendered]:
        """Release what can be released; then ask for what could not be."""
        if self.yielding:
            yield Statement(
                "UPDATE edda_instances SET owner = NULL, state = 'runnable', available_at = @edda_now, "
                f"updated_at = @edda_now WHERE id IN {marks(len(self.yielding))}",
                self.yielding,
            )
        for begin in range(0, len(self.ending), _ENDS_PER_STATEMENT):
            yield _end(self.ending[begin : begin + _ENDS_PER_STATEMENT])
        finals = [turn for turn in self.ending if turn.end_state is not State.PAUSED]
        ended = [turn.instance_id for turn in finals]
        if ended:
            yield Statement(f"DELETE FROM edda_waits WHERE instance_id IN {marks(len(ended))}", ended)
        # After the ends, which free the live keys.
        yield from rows.instances((t.successor for t in finals if t.successor is not None), max_bytes)
        yield from self._park()
        yield from self._look()

    def _park(self) -> Iterator[Statement]:
        if not self.parking:
            return
        among = marks(len(self.parking))
        # Updates of one table and not joins: their sub-queries then read a snapshot and lock nothing.
        yield Statement(
            "UPDATE edda_waits w SET w.due = (COALESCE(w.deadline <= @edda_now, 0) "
            f"OR (w.due = 1 AND w.kind <> 'event') OR {HAS_EVENT}) WHERE w.instance_id IN {among}",
            self.parking,
        )
        quiet = "NOT EXISTS (SELECT 1 FROM edda_waits w WHERE w.instance_id = i.id AND w.due = 1)"
        yield Statement(
            "UPDATE edda_instances i SET i.owner = NULL, i.state = 'waiting', i.updated_at = @edda_now "
            f"WHERE i.id IN {among} AND {quiet}",
            self.parking,
        )
        if not self.looking:
            yield self._still_owned()

    def _still_owned(self) -> Statement:
        return Statement(
            f"SELECT id FROM edda_instances WHERE id IN {marks(len(self.parking))} AND owner IS NOT NULL",
            self.parking,
        )

    def _look(self) -> Iterator[Statement]:
        if not self.looking:
            return
        condition = pairs("w.instance_id", "w.seq", self.looking)
        yield Statement(
            f"UPDATE edda_waits w SET w.due = 1 WHERE {condition.text} AND {HAS_EVENT}", condition.values
        )
        if self.parking:
            yield self._still_owned()
        yield Statement(
            f"SELECT DISTINCT w.instance_id FROM edda_waits w WHERE {condition.text} AND w.due = 1",
            condition.values,
        )


def _end(turns: Sequence[Turn]) -> Statement:
    one = "SELECT %s AS id, %s AS state, %s AS output, %s AS output_type, %s AS error, %s AS final"
    values: list[Value] = []
    for turn in turns:
        state = (turn.end_state or State.COMPLETED).value
        output_type = None if turn.output_type is None else turn.output_type.encode()
        values += [turn.instance_id.encode(), state.encode(), turn.output, output_type, turn.error]
        values.append(0 if turn.end_state is State.PAUSED else 1)
    outcomes = " UNION ALL ".join([one] * len(turns))
    return Statement(
        f"UPDATE ({outcomes}) o STRAIGHT_JOIN edda_instances i ON i.id = o.id "
        "SET i.state = o.state, i.output = o.output, i.output_type = o.output_type, i.error = o.error, "
        "i.owner = NULL, i.updated_at = @edda_now, i.ended_at = IF(o.final, @edda_now, i.ended_at), "
        "i.live_key = IF(o.final, NULL, i.live_key)",
        values,
    )
