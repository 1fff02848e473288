"""What cannot be accepted is refused alone, with the reason; its neighbours are in, and positions lose nothing."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from edda.cloudevent import CloudEvent
from edda.errors import StorageDataError
from edda.inbox.accept import Positioned
from edda.storage.contract import Storage
from edda.storage.rows import NewDeadLetter, PositionAdvance, Trigger, Verdict
from edda.storage.schema import dead_letters, source_positions
from tests.inbox.conftest import MakeInbox
from tests.inbox.given import TOO_LONG, event, many, refuse_long_content_types, stored
from tests.inbox.wire import Wire
from tests.support.databases import Database


def positioned(item: CloudEvent) -> Positioned:
    """An event of partition 0, which leaves a dead letter when it is refused."""
    return Positioned(
        item,
        0,
        lambda reason: NewDeadLetter(f"topic/0@{item.id}", item.data or b"", b"[]", reason, position=0),
    )


def advance(fetched_from: int, next_offset: int) -> PositionAdvance:
    return PositionAdvance("cluster", "group", "topic", 0, fetched_from, next_offset)


async def letters(store: Storage) -> list[tuple[str, str]]:
    async with store.engine().connect() as connection:
        rows = await connection.execute(sa.select(dead_letters.c.origin, dead_letters.c.reason))
        return [(row.origin, row.reason) for row in rows]


async def offset(store: Storage) -> int | None:
    async with store.engine().connect() as connection:
        return (await connection.execute(sa.select(source_positions.c.next_offset))).scalar()


async def test_what_the_database_refuses_is_refused_alone(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    for at in range(7):
        batch = many(7, prefix=f"run{at}")
        batch[at] = event(f"bad{at}", datacontenttype=TOO_LONG)
        results = await make_inbox(store).deliver(batch)
        for number, result in enumerate(results):
            assert result.verdict is (Verdict.REFUSED if number == at else Verdict.UNMATCHED)
            assert bool(result.reason) is (number == at)
    assert len(await stored(store)) == 42


async def test_all_that_the_database_refuses_is_refused_and_later_deliveries_go_on(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    inbox = make_inbox(store)
    results = await inbox.deliver(many(3, datacontenttype=TOO_LONG))
    assert [result.verdict for result in results] == [Verdict.REFUSED] * 3
    [fine] = await inbox.deliver([event("fine")])
    assert fine.verdict is Verdict.UNMATCHED


async def test_a_refused_event_does_not_make_its_neighbours_duplicates_of_themselves(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    await store.declare_triggers([Trigger("shop", "fulfil", "order.created")])
    batch = [event("a"), event("bad", datacontenttype=TOO_LONG), event("b"), event("a")]
    results, stale = await make_inbox(store).accept_batch(
        [positioned(item) for item in batch], [advance(0, 4)]
    )
    assert [result.verdict for result in results] == [
        Verdict.ACCEPTED,
        Verdict.REFUSED,
        Verdict.ACCEPTED,
        Verdict.DUPLICATE,
    ]
    assert [result.starts for result in results] == [1, 0, 1, 0]
    assert stale == {}
    assert await stored(store) == ["a", "b"]


async def test_positions_go_on_over_a_refused_event_only_with_its_dead_letter(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    batch = [event("a"), event("bad", datacontenttype=TOO_LONG)]
    await make_inbox(store).accept_batch([positioned(item) for item in batch], [advance(0, 2)])
    assert await offset(store) == 2
    [(origin, reason)] = await letters(store)
    assert origin == "topic/0@bad"
    assert reason


async def test_a_source_without_positions_keeps_a_dead_letter_of_what_is_refused_too(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    batch = [Positioned(event("a")), Positioned(event("bad", datacontenttype=TOO_LONG), None, unpositioned)]
    results, _ = await make_inbox(store).accept_batch(batch)
    assert [result.verdict for result in results] == [Verdict.UNMATCHED, Verdict.REFUSED]
    assert [origin for origin, _ in await letters(store)] == ["queue"]


def unpositioned(reason: str) -> NewDeadLetter:
    return NewDeadLetter("queue", b"raw", b"[]", reason)


async def test_positions_stay_until_every_event_that_can_be_in_is_in(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    wire = Wire(store)
    batch = [event("a"), event("bad", datacontenttype=TOO_LONG), event("b")]
    inbox = make_inbox(wire)
    await inbox.accept_batch([positioned(item) for item in batch], [advance(0, 3)])
    last = wire.sent[-1]
    assert last.positions
    assert not last.events
    assert [len(letter.reason) > 0 for letter in last.poison] == [True]
    assert all(not sent.positions for sent in wire.sent[1:-1])


async def test_what_was_accepted_in_pieces_before_a_crash_is_a_duplicate_when_it_is_fetched_again(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    await make_inbox(store).deliver([event("a")])  # a piece that was in before the crash
    batch = [event("a"), event("bad", datacontenttype=TOO_LONG), event("b")]
    results, _ = await make_inbox(store).accept_batch([positioned(item) for item in batch], [advance(0, 3)])
    assert [result.verdict for result in results] == [Verdict.DUPLICATE, Verdict.REFUSED, Verdict.UNMATCHED]
    assert await stored(store) == ["a", "b"]
    assert await offset(store) == 3


async def test_a_zombies_batch_with_a_refused_event_moves_no_position_and_leaves_no_letter(
    database: Database, store: Storage, make_inbox: MakeInbox
) -> None:
    await refuse_long_content_types(database)
    inbox = make_inbox(store)
    await inbox.accept_batch([positioned(event("a"))], [advance(0, 5)])
    batch = [positioned(event("bad", datacontenttype=TOO_LONG)), positioned(event("b"))]
    _, stale = await inbox.accept_batch(batch, [advance(0, 2)])
    assert stale == {0: 5}
    assert await offset(store) == 5
    assert await letters(store) == []


async def test_a_stale_partition_leaves_the_batch_and_nothing_of_it_is_stored(
    store: Storage, make_inbox: MakeInbox
) -> None:
    inbox = make_inbox(store)
    await inbox.accept_batch([positioned(event("a"))], [advance(0, 5)])
    results, stale = await inbox.accept_batch([positioned(event("b"))], [advance(0, 6)])
    assert [result.verdict for result in results] == [Verdict.STALE_POSITION]
    assert stale == {0: 5}
    assert await stored(store) == ["a"]


async def test_poison_goes_with_the_positions_in_one_transaction(
    store: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(store)
    poison = NewDeadLetter("topic/0@1", b"\x00\xff", b"[]", "no id", position=0)
    await make_inbox(wire).accept_batch([positioned(event("a"))], [advance(0, 2)], [poison])
    assert len(wire.sent) == 1
    assert await letters(store) == [("topic/0@1", "no id")]
    assert await offset(store) == 2


async def test_a_dead_letter_that_cannot_be_stored_stops_the_source_and_moves_no_position(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    poison = NewDeadLetter("topic/0@1", b"", b"[]", "lone surrogate \ud800", position=0)
    with pytest.raises(StorageDataError):
        await make_inbox(lite).accept_batch([positioned(event("a"))], [advance(0, 2)], [poison])
    assert await offset(lite) is None


# ---------------------------------------------------------------------------------------------- refused when bound


@pytest.mark.parametrize("addressee", ["", "x" * 129, "two words", "été", 42, True])
async def test_an_addressee_that_no_instance_can_have_is_refused_clearly_and_not_cut(
    lite: Storage, make_inbox: MakeInbox, addressee: str | int | bool
) -> None:
    bad = event("bad", extensions={"eddainstanceid": addressee})
    left, refused, right = await make_inbox(lite).deliver([event("a"), bad, event("b")])
    assert [left.verdict, refused.verdict, right.verdict] == [
        Verdict.UNMATCHED,
        Verdict.REFUSED,
        Verdict.UNMATCHED,
    ]
    assert "eddainstanceid" in refused.reason
    assert "1 to 128" in refused.reason
    assert await stored(lite) == ["a", "b"]


async def test_the_longest_addressee_is_taken_whole(store: Storage, make_inbox: MakeInbox) -> None:
    [result] = await make_inbox(store).deliver([event(extensions={"eddainstanceid": "x" * 128})])
    assert result.verdict is Verdict.UNMATCHED
    [row] = await store.events_of_pattern("order.created", 0, 10, 10)
    assert row.addressee == "x" * 128


async def test_a_refused_event_of_a_source_leaves_a_dead_letter_in_the_same_transaction(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    bad = positioned(event("bad", extensions={"eddainstanceid": 42}))
    await make_inbox(wire).accept_batch([bad, positioned(event("a"))], [advance(0, 2)])
    assert len(wire.sent) == 1
    [(origin, reason)] = await letters(lite)
    assert origin == "topic/0@bad"
    assert "eddainstanceid" in reason


async def test_a_delivery_of_refused_events_alone_needs_no_transaction(
    lite: Storage, make_inbox: MakeInbox
) -> None:
    wire = Wire(lite)
    await make_inbox(wire).deliver([event("bad", extensions={"eddainstanceid": 42})])
    assert wire.sent == []
