"""An event is accepted once, by (source, id), whoever else delivers it at the same moment."""

import asyncio

from edda.cloudevent import CloudEvent
from edda.inbox.accept import Inbox
from edda.storage.contract import Storage
from edda.storage.rows import AcceptBatch, NewDeadLetter, Verdict
from edda.storage.schema import dead_letters, events, identities, instances, source_positions
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

#: For MySQL's default collation all of these are one word.
ALIKE = ["a1", "A1", "á1", "a1 ", "a1\t", "\uff411"]


async def test_one_event_from_two_gateways_at_once_is_accepted_by_one(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    start = given.instance("started")
    async with barrier.at(events, "INSERT"):
        first = await barrier.stopped(store.accept(given.batch("one", given.event("e", starts=[start]))))
        again = given.event("e", starts=[given.instance("started twice")])
        second = await barrier.waiting(other.accept(given.batch("two", again)))
    (accepted,), (duplicate,) = (await first).results, (await second).results
    assert (accepted.verdict, accepted.starts) == (Verdict.ACCEPTED, 1)
    assert (duplicate.verdict, duplicate.starts, duplicate.seq) == (Verdict.DUPLICATE, 0, accepted.seq)
    assert await raw.count(events) == await raw.count(identities) == await raw.count(instances) == 1


async def test_two_contents_under_one_identity_at_once_are_one_event_and_a_conflict(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    async with barrier.at(events, "INSERT"):
        first = await barrier.stopped(store.accept(given.batch("one", given.event("e", data="paid"))))
        changed = given.event("e", data="refunded")
        second = await barrier.waiting(other.accept(given.batch("two", changed)))
    assert (await first).results[0].verdict is Verdict.UNMATCHED
    assert (await second).results[0].verdict is Verdict.CONFLICT
    assert await raw.rows(events.select().with_only_columns(events.c.data)) == [(b"paid",)]


async def test_a_duplicate_takes_none_of_its_neighbours_with_it(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    names = ["a", "b", "c"]
    async with barrier.at(events, "INSERT"):
        first = await barrier.stopped(store.accept(given.batch("one", given.event("b"))))
        second = await barrier.waiting(
            other.accept(given.batch("two", *(given.event(name) for name in names)))
        )
    await first
    verdicts = [result.verdict for result in (await second).results]
    assert verdicts == [Verdict.UNMATCHED, Verdict.DUPLICATE, Verdict.UNMATCHED]
    assert await raw.count(events) == 3


async def test_an_event_that_is_twice_in_one_batch_is_accepted_once(store: Storage, raw: Raw) -> None:
    twice = [given.event("e"), given.event("e"), given.event("e", data="other")]
    results = (await store.accept(given.batch("b", *twice))).results
    assert [result.verdict for result in results] == [
        Verdict.UNMATCHED,
        Verdict.DUPLICATE,
        Verdict.CONFLICT,
    ]
    assert await raw.count(events) == 1


async def test_identities_that_differ_in_case_accent_or_trailing_blank_are_distinct(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """Also as sources, and across two gateways and batches."""
    ids = [given.event(name) for name in ALIKE]
    sources = [given.event("e", source=source) for source in ALIKE]
    results = (await store.accept(given.batch("one", *ids))).results
    results += (await other.accept(given.batch("two", *sources))).results
    assert {result.verdict for result in results} == {Verdict.UNMATCHED}
    assert await raw.count(events) == 2 * len(ALIKE)
    again = (await other.accept(given.batch("three", *ids, *sources))).results
    assert [result.verdict for result in again] == [Verdict.DUPLICATE] * len(results)
    assert [result.seq for result in again] == [result.seq for result in results]


async def test_where_the_source_ends_and_the_id_begins_is_part_of_the_identity(store: Storage) -> None:
    """By the real digest: ("ab", "cd") is not ("abc", "d")."""
    inbox = Inbox(store)
    made = [
        CloudEvent(id=name, source=source, type="t")
        for source, name in [("ab", "cd"), ("abc", "d"), ("a", "bcd")]
    ]
    results = await inbox.deliver(made)
    assert {result.verdict for result in results} == {Verdict.UNMATCHED}
    await inbox.close()


# ---------------------------------------------------------------------------------------------- positions


async def test_a_zombie_consumers_batch_writes_nothing_and_hears_where_to_go_on(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.accept(given.batch("seen", given.event("e0", position=0), positions=[given.advance(0, 1)]))
    await other.accept(given.batch("live", given.event("e1", position=0), positions=[given.advance(1, 2)]))
    poison = NewDeadLetter("kafka:payments/0@1", b"?", b"[]", "no JSON", position=0)
    zombie = given.batch(
        "zombie",
        given.event("e1", position=0),
        given.event("e1b", position=0),
        poison=[poison],
        positions=[given.advance(1, 3)],
    )
    result = await store.accept(zombie)
    assert [one.verdict for one in result.results] == [Verdict.STALE_POSITION] * 2
    assert result.stale == {0: 2}
    assert await raw.count(events) == 2
    assert await raw.count(dead_letters) == 0
    assert await raw.scalar(source_positions.select().with_only_columns(source_positions.c.next_offset)) == 2


async def test_of_two_consumers_with_one_position_at_once_one_advances_and_no_partition_suffers_for_another(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    def fetched(name: str, partition: int) -> AcceptBatch:
        return given.batch(
            name,
            given.event(f"{name}-shared", position=0),
            given.event(f"{name}-own", position=1),
            positions=[given.advance(0, 10), given.advance(0, 10, partition=partition)],
        )

    async with barrier.at(events, "INSERT"):
        first = await barrier.stopped(store.accept(fetched("one", 1)))
        second = await barrier.waiting(other.accept(fetched("two", 2)))
    assert [result.verdict for result in (await first).results] == [Verdict.UNMATCHED] * 2
    late = await second
    assert [result.verdict for result in late.results] == [Verdict.STALE_POSITION, Verdict.UNMATCHED]
    assert late.stale == {0: 10}
    found = {row.partition_id: row.next_offset for row in await raw.rows(source_positions.select())}
    assert found == {0: 10, 1: 10, 2: 10}
    stored = {row.event_id for row in await raw.rows(events.select())}
    assert stored == {"one-shared", "one-own", "two-own"}


# ---------------------------------------------------------------------------------------------- the inbox


def cloud_event(id: str) -> CloudEvent:
    return CloudEvent(id=id, source="bank", type="paid", data=b"{}")


async def test_events_of_a_cancelled_caller_are_accepted_all_the_same(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    """An HTTP client that hangs up while accept waits for its lock cannot take back what it sent, nor harm others."""
    inbox = Inbox(store)
    async with barrier.at(events, "INSERT"):
        holding = await barrier.stopped(other.accept(given.batch("b", given.event("e"))))
        hasty = await barrier.waiting(inbox.deliver([cloud_event("hasty")]))
        patient = asyncio.create_task(inbox.deliver([cloud_event("patient")]))
        hasty.cancel()
        await asyncio.wait([hasty])
    await holding
    assert hasty.cancelled()
    assert (await patient)[0].verdict is Verdict.UNMATCHED
    assert {row.event_id for row in await raw.rows(events.select())} == {"e", "hasty", "patient"}
    await inbox.close()


async def test_the_same_stream_from_two_gateways_is_accepted_once(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """Both deliver everything, in other orders and batches, as after a rebalance."""
    stream = [cloud_event(f"e{number}") for number in range(60)]

    async def deliver(inbox: Inbox, order: list[CloudEvent]) -> list[Verdict]:
        answers = await asyncio.gather(*(inbox.deliver(order[at : at + 7]) for at in range(0, len(order), 7)))
        return [result.verdict for answer in answers for result in answer]

    inboxes = [Inbox(store), Inbox(other)]
    verdicts = await asyncio.gather(deliver(inboxes[0], stream), deliver(inboxes[1], stream[::-1]))
    told = [verdict for some in verdicts for verdict in some]
    assert sorted(told) == [Verdict.DUPLICATE] * 60 + [Verdict.UNMATCHED] * 60
    assert await raw.count(events) == await raw.count(identities) == 60
    for inbox in inboxes:
        await inbox.close()
