"""Accept: a batch of events becomes the arrays of one call of ``edda_accept_1``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from edda.errors import StaleRoutingError
from edda.storage.core.traits import ACCEPT_LOCK
from edda.storage.postgresql.connection import Link, Row, one
from edda.storage.postgresql.rows import Arguments, call, instance_columns
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    EventResult,
    NewDeadLetter,
    NewEvent,
    NewInstance,
    PositionAdvance,
    Verdict,
)

#: Waits woken inside the accept transaction; the rest is marked after its commit.
FIRST_WAITS = 1_000

_VERDICTS = {
    1: Verdict.ACCEPTED,  # by an earlier try of this batch
    2: Verdict.DUPLICATE,
    3: Verdict.CONFLICT,
    4: Verdict.STALE_POSITION,
}


async def accept(link: Link, offset_us: int, batch: AcceptBatch) -> AcceptResult:
    """One transaction; see the contract."""
    arguments = _arguments(batch)
    twins = len({event.digest for event in batch.events}) < len(batch.events)
    head = (offset_us, ACCEPT_LOCK, batch.batch_id, batch.routing_version, twins, FIRST_WAITS)
    answer = one(await link.fetch(_ACCEPT, *head, *map(arguments.get, _NAMES)))
    if answer["o_routing"] is not None:
        raise StaleRoutingError(
            f"the batch was computed for routing version {batch.routing_version}, the database is at "
            f"{answer['o_routing']}. Nothing was written; read the routing again and recompute the batch."
        )
    stale = zip(answer["o_stale"] or (), answer["o_stored"] or (), strict=True)
    more = frozenset(answer["o_more"] or ())
    return AcceptResult(
        tuple(_results(batch.events, answer, more)),
        frozenset(answer["o_apps"] or ()),
        tuple(sorted(more)),
        {number - 1: stored for number, stored in stale},
    )


def _results(events: Sequence[NewEvent], answer: Row, more: frozenset[bytes]) -> Iterator[EventResult]:
    started = Counter(answer["o_started"] or ())
    by_hash = Counter(answer["o_hash"] or ())
    by_chain = Counter(zip(answer["o_hash"] or (), answer["o_chain"] or (), strict=False))
    chains = answer["o_addressed"] or [None] * len(events)
    for event, verdict, seq, chain in zip(
        events, answer["o_verdict"] or (), answer["o_seq"] or (), chains, strict=True
    ):
        if verdict in _VERDICTS:
            yield EventResult(_VERDICTS[verdict], seq)
            continue
        keys = dict.fromkeys(event.keys)
        woken = sum(by_hash[key] if event.addressee is None else by_chain[key, chain] for key in keys)
        # A trigger takes the event also where its run lives already: that run receives it.
        wanted = woken or event.starts or not more.isdisjoint(keys)
        yield EventResult(Verdict.ACCEPTED if wanted else Verdict.UNMATCHED, seq, woken, started[seq])


# ---------------------------------------------------------------------------------------------- arguments


def _arguments(batch: AcceptBatch) -> Arguments:
    """Only what there are rows of."""
    keys = [
        (number, key) for number, event in enumerate(batch.events, 1) for key in dict.fromkeys(event.keys)
    ]
    starts = [(number, new) for number, event in enumerate(batch.events, 1) for new in event.starts]
    arguments: Arguments = {}
    if batch.positions:
        arguments |= _positions(batch.positions)
    if batch.events:
        arguments |= _events(batch.events)
    if keys:
        arguments |= _keys(keys)
    if batch.poison:
        arguments |= _poison(batch.poison)
    if starts:
        arguments |= _starts(starts)
    return arguments


def _number(position: int | None) -> int | None:
    return None if position is None else position + 1


def _events(events: Sequence[NewEvent]) -> Arguments:
    return {
        "e_digest": [event.digest for event in events],
        "e_data_hash": [event.data_hash for event in events],
        "e_type": [event.type for event in events],
        "e_source": [event.source for event in events],
        "e_event_id": [event.event_id for event in events],
        "e_attributes": [event.attributes for event in events],
        "e_data": [event.data for event in events],
        "e_content_type": [event.content_type for event in events],
        "e_addressee": [event.addressee for event in events],
        "e_position": [_number(event.position) for event in events],
    }


def _positions(positions: Sequence[PositionAdvance]) -> Arguments:
    return {
        "p_cluster": [position.cluster for position in positions],
        "p_group": [position.group for position in positions],
        "p_topic": [position.topic for position in positions],
        "p_partition": [position.partition for position in positions],
        "p_from": [position.fetched_from for position in positions],
        "p_next": [position.next_offset for position in positions],
    }


def _keys(keys: Sequence[tuple[int, bytes]]) -> Arguments:
    return {"k_event": [number for number, _ in keys], "k_hash": [key for _, key in keys]}


def _poison(letters: Sequence[NewDeadLetter]) -> Arguments:
    return {
        "l_position": [_number(letter.position) for letter in letters],
        "l_origin": [letter.origin for letter in letters],
        "l_raw": [letter.raw for letter in letters],
        "l_headers": [letter.headers for letter in letters],
        "l_reason": [letter.reason for letter in letters],
        "l_attempts": [letter.attempts for letter in letters],
    }


def _starts(starts: Sequence[tuple[int, NewInstance]]) -> Arguments:
    return {"n_event": [number for number, _ in starts], **instance_columns([new for _, new in starts])}


_NAMES = (*_positions([]), *_events([]), *_keys([]), *_poison([]), *_starts([]))
_ACCEPT = call("edda_accept_1", 6, _NAMES)
