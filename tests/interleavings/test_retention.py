"""Retention beside everything else: it holds nobody up for long, and takes nothing away that is being taken."""

import asyncio

import pytest
import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.rows import Applied, Chunk, Expiring, Release, Shape, Sweep, Swept, Verdict
from edda.storage.schema import event_keys, events, history, identities, instances, sweeps
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import spawn

HOUR = 3_600_000_000
DAY = 24 * HOUR
WEEK = 7 * DAY

#: Seconds; less than a sweep that is stopped waits for a lock before it lets go of everything.
NOT_HELD_UP = 15.0


async def right(store: Storage) -> Sweep:
    sweep = await store.begin_sweep("one", HOUR, 0)
    assert sweep is not None
    return sweep


async def chunk(store: Storage, what: Expiring) -> Chunk:
    before = await store.now() - WEEK
    return Chunk(what, before, apps=((given.APP, before),))


async def a_week_later(*stores: Storage) -> None:
    for store in stores:
        store.clock_offset_us += 8 * DAY


async def test_events_are_accepted_while_others_are_removed(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    await store.accept(given.batch("old", given.event("old", "key")))
    await a_week_later(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.EVENTS)
    async with barrier.at(events, "DELETE"):
        removing = await barrier.stopped(store.sweep(sweep, what, HOUR))
        async with asyncio.timeout(NOT_HELD_UP):
            (result,) = (await other.accept(given.batch("new", given.event("new", "key")))).results
        assert (result.verdict, result.seq) == (Verdict.UNMATCHED, 2)
    assert await removing == Swept(1, 0, None)
    assert await raw.scalar(sa.select(events.c.seq)) == 2
    assert await raw.scalar(sa.select(event_keys.c.seq)) == 2


async def test_a_repeat_is_known_while_old_identities_are_removed(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    await store.accept(given.batch("old", given.event("old")))
    await store.end_sweep(await right(store), 1_000 * DAY)
    await a_week_later(store, other)
    await other.accept(given.batch("new", given.event("new")))
    sweep = await right(store)
    await store.sweep(sweep, await chunk(store, Expiring.EVENTS), HOUR)
    what = await chunk(store, Expiring.IDENTITIES)
    async with barrier.at(identities, "DELETE"):
        removing = await barrier.stopped(store.sweep(sweep, what, HOUR))
        async with asyncio.timeout(NOT_HELD_UP):
            results = (await other.accept(given.batch("again", given.event("new")))).results
        assert results[0].verdict is Verdict.DUPLICATE
    assert await removing == Swept(1, 0, None)
    assert await raw.count(identities) == 1


async def test_an_event_that_is_removed_while_a_worker_claims_is_none_that_its_instance_waits_for(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.park("order", 2, "key")])
    await store.accept(given.batch("old", given.event("for it", "key"), given.event("for nobody", "x")))
    await a_week_later(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.EVENTS)
    async with barrier.at(events, "DELETE"):
        removing = await barrier.stopped(store.sweep(sweep, what, HOUR))
        async with asyncio.timeout(NOT_HELD_UP):
            (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
            loaded = (await other.load(["order"]))["order"]
            assert loaded.waits[0].event is not None
            turn = given.step("order", 3, owner="b", fence=claimed.fence, signals=claimed.signals)
            assert [one.applied for one in (await other.flush([turn])).results] == [Applied.APPLIED]
    assert await removing == Swept(1, 1, None)
    assert (await other.load(["order"]))["order"].waits[0].event is not None


async def test_a_worker_claims_an_instance_while_a_sweep_looks_at_what_it_may_receive(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    """Runnable or running: the event stays, whichever of the two the sweep saw."""
    await store.flush([given.start("order")])
    await store.flush([given.park("order", 2, "key")])
    await store.accept(given.batch("old", given.event("for it", "key")))
    await a_week_later(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.EVENTS)
    async with barrier.at(instances, "UPDATE", "NEW.state = 'running'"):
        claiming = await barrier.stopped(other.claim(given.APP, [given.WORKFLOW], "b", 10))
        assert await store.sweep(sweep, what, HOUR) == Swept(0, 1, None)
    assert [one.id for one in await claiming] == ["order"]
    assert await store.sweep(sweep, what, HOUR) == Swept(0, 1, None)
    assert await raw.count(events) == 1


async def an_old_event_and_a_new_shape(
    store: Storage, other: Storage
) -> tuple[Shape, list[tuple[bytes, str, int]]]:
    """A shape that is filling, and the key that it is to be given of the event."""
    await store.accept(given.batch("old", given.event("old")))
    shape = await store.register_shape("paid", ("data.id",))
    await a_week_later(store, other)
    return shape, [(given.digest("key"), "", 1)]


async def test_a_backfill_and_a_removal_of_the_same_event_leave_no_key_without_its_event(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    shape, keys = await an_old_event_and_a_new_shape(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.EVENTS)
    async with barrier.at(event_keys, "INSERT"):
        filling = await barrier.stopped(other.backfill(shape.id, keys, done=True))
        removing = await barrier.waiting(store.sweep(sweep, what, HOUR))
    await filling
    assert await removing == Swept(1, 0, None)
    assert (await raw.count(events), await raw.count(event_keys)) == (0, 0)


async def test_a_removal_and_a_backfill_of_the_same_event_leave_no_key_without_its_event(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    shape, keys = await an_old_event_and_a_new_shape(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.EVENTS)
    async with barrier.at(events, "DELETE"):
        removing = await barrier.stopped(store.sweep(sweep, what, HOUR))
        filling = await barrier.waiting(other.backfill(shape.id, keys, done=True))
    assert await removing == Swept(1, 0, None)
    await filling
    assert (await raw.count(events), await raw.count(event_keys)) == (0, 0)


async def test_other_instances_go_on_while_finished_ones_are_removed(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    await store.flush([given.start("done"), given.start("lives", owner="b")])
    await store.flush([given.step("done", 2, release=Release.END)])
    await a_week_later(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.INSTANCES)
    async with barrier.at(history, "DELETE"):
        removing = await barrier.stopped(store.sweep(sweep, what, HOUR))
        turns = [given.step("lives", 2, owner="b"), given.start("new", owner="b")]
        async with asyncio.timeout(NOT_HELD_UP):
            results = (await other.flush(turns)).results
        assert {one.applied for one in results} == {Applied.APPLIED}
    assert await removing == Swept(1, 1, None)
    assert await raw.count(history) == 3
    assert await raw.count(instances) == 2


async def test_a_turn_that_is_sent_again_after_its_instance_was_removed_is_lost(
    store: Storage, other: Storage
) -> None:
    await store.flush([given.start("done")])
    turn = given.step("done", 2, release=Release.END)
    await store.flush([turn])
    await a_week_later(store, other)
    assert await other.sweep(await right(other), await chunk(other, Expiring.INSTANCES), HOUR) == Swept(
        1, 0, None
    )
    assert [one.applied for one in (await store.flush([turn])).results] == [Applied.LOST]


async def test_of_two_sweeps_that_begin_at_once_one_has_the_right(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    async with barrier.at(sweeps, "INSERT"):
        first = await barrier.stopped(store.begin_sweep("one", HOUR, 0))
        second = await barrier.waiting(other.begin_sweep("two", HOUR, 0))
    told = [await first, await second]
    assert told in ([Sweep(1, "one"), None], [None, Sweep(1, "two")])
    assert await raw.count(sweeps) == 1


async def test_a_sweep_that_is_in_the_middle_of_a_chunk_is_not_taken_over(
    store: Storage, other: Storage, barrier: Barrier, raw: Raw
) -> None:
    """Its right runs out while it works; it had renewed it when it began to."""
    await store.accept(given.batch("old", given.event("old")))
    await a_week_later(store, other)
    sweep, what = await right(store), await chunk(store, Expiring.EVENTS)
    async with barrier.at(events, "DELETE"):
        removing = await barrier.stopped(store.sweep(sweep, what, 3 * HOUR))
        other.clock_offset_us += 2 * HOUR
        taking_over = await barrier.waiting(other.begin_sweep("two", HOUR, 0))
    assert await removing == Swept(1, 0, None)
    assert await taking_over is None
    store.clock_offset_us = other.clock_offset_us
    assert await store.sweep(sweep, what, HOUR) == Swept(0, 0, None)


async def test_a_sweep_that_was_taken_over_removes_nothing_any_more(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.accept(given.batch("old", given.event("old")))
    await a_week_later(store, other)
    stopped, what = await right(store), await chunk(store, Expiring.EVENTS)
    other.clock_offset_us += 2 * HOUR
    assert await other.begin_sweep("two", HOUR, 0) is not None
    assert await store.sweep(stopped, what, HOUR) is None
    assert await raw.count(events) == 1


@pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)
async def test_a_sweep_that_is_killed_in_the_middle_of_a_chunk_has_removed_nothing_of_it(
    store: Storage, database: Database, barrier: Barrier, raw: Raw
) -> None:
    await store.flush([given.start("done")])
    await store.flush([given.step("done", 2, release=Release.END)])
    await a_week_later(store)
    async with barrier.at(instances, "DELETE"):
        with spawn("tests.interleavings.programs:sweep_instances", database.url, str(8 * DAY)) as process:
            await process.line("^sweeping$")
            await eventually(raw.lock_waits)
            process.kill()
    await eventually(lambda: _all_there(raw))
    store.clock_offset_us += 2 * HOUR
    assert await store.sweep(await right(store), await chunk(store, Expiring.INSTANCES), HOUR) == Swept(
        1, 0, None
    )
    assert (await raw.count(instances), await raw.count(history)) == (0, 0)


async def _all_there(raw: Raw) -> bool:
    return (await raw.count(instances), await raw.count(history), await raw.lock_waits()) == (1, 2, 0)
