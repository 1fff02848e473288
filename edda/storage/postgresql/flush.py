"""The turn: turns of many instances become the arrays of one call of ``edda_flush_1``.

A pure step flush, one with ends, starts, outbox rows and one that registers waits are all this one round trip; only an
end that is kept for an unread event costs another, to read the event. Whether a record exists already is asked only
after its key has refused it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from edda.errors import StorageDataError
from edda.storage.core.traits import ACCEPT_LOCK
from edda.storage.postgresql.connection import Link, Row, one
from edda.storage.postgresql.errors import is_repeated_record
from edda.storage.postgresql.rows import EVENTS, Arguments, all_instance_columns, call, event_row
from edda.storage.rows import (
    Applied,
    FlushResult,
    NewInstance,
    NewWait,
    OutboxMessage,
    Record,
    Release,
    State,
    Turn,
    TurnResult,
    Unread,
    WaitKind,
)

#: How a turn that pauses its instance releases it, for the function.
_PAUSE = 4

#: Each with the number of its turn, from 1.
_Numbered = Sequence[tuple[int, Turn]]


async def flush(link: Link, offset_us: int, turns: Sequence[Turn]) -> FlushResult:
    """One transaction; see the contract."""
    lock = ACCEPT_LOCK if any(_meets_events(turn) for turn in turns if turn.release or turn.waits) else None
    arguments = _arguments(turns)
    try:
        answer = one(await _call(link, offset_us, lock, arguments, careful=False))
    except Exception as error:
        # An earlier try was committed, or another owner has written it.
        if not is_repeated_record(error) or not await link.rollback():
            raise
        answer = one(await _call_carefully(link, offset_us, lock, arguments))
    unread = answer["o_unread"] or [None] * len(turns)
    seqs = sorted({seq for seq in unread if seq is not None})
    events = {row["seq"]: event_row(row) for row in await link.fetch(EVENTS, seqs)} if seqs else {}
    return FlushResult(
        answer["o_now"],
        tuple(
            _result(applied, signals)
            if seq is None
            else TurnResult(Applied(applied), signals, events.get(seq))
            for applied, signals, seq in zip(
                answer["o_applied"] or (), answer["o_signals"] or (), unread, strict=True
            )
        ),
    )


@lru_cache
def _result(applied: int, signals: int) -> TurnResult:
    """Most turns of a flush have the same result."""
    return TurnResult(Applied(applied), signals)


async def _call(
    link: Link, offset_us: int, lock: int | None, arguments: Arguments, *, careful: bool
) -> list[Row]:
    return await link.fetch(_FLUSH, offset_us, lock, careful, *map(arguments.get, _NAMES))


async def _call_carefully(link: Link, offset_us: int, lock: int | None, arguments: Arguments) -> list[Row]:
    try:
        return await _call(link, offset_us, lock, arguments, careful=True)
    except Exception as error:
        if is_repeated_record(error):
            raise StorageDataError(
                f"PostgreSQL refuses a record: {error}, and the first record of its turn is new. Nothing was written."
            ) from error
        raise


def _meets_events(turn: Turn) -> bool:
    # Parking takes the lock whatever waits there are: only the database knows what earlier turns have registered.
    return (
        turn.release is Release.PARK
        or _asked(turn) is not None
        or any(wait.kind is WaitKind.EVENT for wait in turn.waits)
    )


def _pauses(turn: Turn) -> bool:
    return turn.release is Release.END and turn.end_state is State.PAUSED


def _asked(turn: Turn) -> Unread | None:
    """What this turn's end must not leave behind."""
    ends = turn.release is Release.END and not _pauses(turn) and turn.successor is None
    return turn.unread if ends else None


# ---------------------------------------------------------------------------------------------- arguments


def _arguments(turns: Sequence[Turn]) -> Arguments:
    """Only what there are rows of: to a pure step flush the other arrays would cost more than its own."""
    numbered = list(enumerate(turns, 1))
    arguments = _turns(turns)
    if records := [(number, record) for number, turn in numbered for record in turn.records]:
        arguments |= _records(records)
    if any(turn.waits or turn.drop_waits for turn in turns):
        arguments |= _waits(_registered(numbered))
        arguments |= _dropped([(number, turn, seq) for number, turn in numbered for seq in turn.drop_waits])
    if messages := [(number, message) for number, turn in numbered for message in turn.outbox]:
        arguments |= _messages(messages)
    if ends := [(number, turn) for number, turn in numbered if turn.release is Release.END]:
        arguments |= _ends(ends)
        if unread := [(number, asked) for number, turn in ends if (asked := _asked(turn)) is not None]:
            arguments |= _unread(unread)
    instances = [
        new
        for number, turn in numbered
        if turn.start is not None or turn.children or turn.successor is not None
        for new in _new(number, turn)
    ]
    if instances:
        arguments |= _instances(sorted(instances, key=lambda new: (new[2].id, new[:2])))
    if recovered := [number for number, turn in numbered if turn.reset_recoveries]:
        arguments["z_turn"] = recovered
    return arguments


def _registered(turns: _Numbered) -> list[tuple[int, Turn, NewWait]]:
    """By key: registered twice, the last one counts; registered and dropped, it is not there."""
    return [
        (number, turn, wait)
        for number, turn in turns
        for wait in {wait.seq: wait for wait in turn.waits}.values()
        if wait.seq not in turn.drop_waits
    ]


def _new(number: int, turn: Turn) -> Iterator[tuple[int, int, NewInstance]]:
    """With the number of the turn and the role."""
    if turn.start is not None:
        yield number, 0, replace(turn.start, owner=turn.owner)
    for child in turn.children:
        yield number, 1, child
    if turn.successor is not None:
        yield number, 2, turn.successor


def _turns(turns: Sequence[Turn]) -> Arguments:
    return {
        "t_id": [turn.instance_id for turn in turns],
        "t_owner": [turn.owner for turn in turns],
        "t_fence": [turn.fence for turn in turns],
        "t_signals": [turn.signals for turn in turns],
        "t_release": [_PAUSE if _pauses(turn) else turn.release for turn in turns],
    }


def _records(rows: Sequence[tuple[int, Record]]) -> Arguments:
    return {
        "r_turn": [number for number, _ in rows],
        "r_seq": [record.seq for _, record in rows],
        "r_pos": [record.pos for _, record in rows],
        "r_kind": [record.kind for _, record in rows],
        "r_name": [record.name for _, record in rows],
        "r_args_hash": [record.args_hash for _, record in rows],
        "r_payload": [record.payload for _, record in rows],
        "r_content_type": [record.content_type for _, record in rows],
        "r_recorded_at": [record.recorded_at or None for _, record in rows],
    }


def _waits(rows: Sequence[tuple[int, Turn, NewWait]]) -> Arguments:
    return {
        "w_turn": [number for number, _, _ in rows],
        "w_id": [turn.instance_id for _, turn, _ in rows],
        "w_seq": [wait.seq for _, _, wait in rows],
        "w_kind": [wait.kind for _, _, wait in rows],
        "w_name": [wait.name for _, _, wait in rows],
        "w_hash": [wait.hash for _, _, wait in rows],
        "w_shape": [wait.shape_id for _, _, wait in rows],
        "w_cursor": [wait.cursor for _, _, wait in rows],
        "w_since": [wait.since_us for _, _, wait in rows],
        "w_skip": [wait.skip for _, _, wait in rows],
        "w_delay": [wait.delay_us for _, _, wait in rows],
        "w_deadline": [wait.deadline_us for _, _, wait in rows],
        "w_detail": [wait.detail for _, _, wait in rows],
    }


def _dropped(rows: Sequence[tuple[int, Turn, int]]) -> Arguments:
    return {
        "d_turn": [number for number, _, _ in rows],
        "d_id": [turn.instance_id for _, turn, _ in rows],
        "d_seq": [seq for _, _, seq in rows],
    }


def _messages(rows: Sequence[tuple[int, OutboxMessage]]) -> Arguments:
    return {
        "m_turn": [number for number, _ in rows],
        "m_destination": [message.destination for _, message in rows],
        "m_ordering_key": [message.ordering_key for _, message in rows],
        "m_type": [message.type for _, message in rows],
        "m_source": [message.source for _, message in rows],
        "m_event_id": [message.event_id for _, message in rows],
        "m_attributes": [message.attributes for _, message in rows],
        "m_data": [message.data for _, message in rows],
        "m_content_type": [message.content_type for _, message in rows],
        "m_instance": [message.instance_id for _, message in rows],
    }


def _ends(rows: _Numbered) -> Arguments:
    return {
        "e_turn": [number for number, _ in rows],
        "e_id": [turn.instance_id for _, turn in rows],
        "e_state": [turn.end_state or State.COMPLETED for _, turn in rows],
        "e_output": [turn.output for _, turn in rows],
        "e_output_type": [turn.output_type for _, turn in rows],
        "e_error": [turn.error for _, turn in rows],
    }


def _unread(rows: Sequence[tuple[int, Unread]]) -> Arguments:
    received = [(number, seq) for number, asked in rows for seq in asked.received]
    return {
        "u_turn": [number for number, _ in rows],
        "u_hash": [asked.hash for _, asked in rows],
        "u_after": [asked.after for _, asked in rows],
        "x_turn": [number for number, _ in received],
        "x_seq": [seq for _, seq in received],
    }


def _instances(rows: Sequence[tuple[int, int, NewInstance]]) -> Arguments:
    return {
        "n_turn": [number for number, _, _ in rows],
        "n_role": [role for _, role, _ in rows],
        **all_instance_columns([new for _, _, new in rows]),
    }


_NAMES = (
    *(*_turns([]), *_records([]), *_waits([]), *_dropped([]), *_messages([]), *_ends([]), *_unread([])),
    *(*_instances([]), "z_turn"),
)
_FLUSH = call("edda_flush_1", 3, _NAMES)
