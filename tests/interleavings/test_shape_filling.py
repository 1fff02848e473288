"""A shape is registered while events come in: each is hashed for it by accept or by the backfill, and in its order."""

import asyncio

import pytest

from edda.cloudevent import CloudEvent
from edda.errors import StaleRoutingError
from edda.inbox.accept import Inbox
from edda.inbox.registry import Shapes
from edda.inbox.shapes import shape_hash
from edda.storage.contract import Storage
from edda.storage.rows import Applied, Release, State, Verdict
from edda.storage.schema import event_keys, events, shapes, waits
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

PATHS = ("data.id",)


async def test_an_event_that_is_being_accepted_when_its_shape_is_registered_is_left_to_the_backfill(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """It was bound to a table without the shape, so that accept has no key for it."""
    async with barrier.at(events, "INSERT"):
        accepting = await barrier.stopped(other.accept(given.batch("b", given.event("e"))))
        registering = await barrier.waiting(store.register_shape("paid", PATHS))
    (accepted,) = (await accepting).results
    shape = await registering
    assert not shape.ready
    assert shape.backfill_until == accepted.seq
    found = await store.events_of_pattern("paid", 0, shape.backfill_until, 10)
    assert [row.event_id for row in found] == ["e"]


async def test_a_batch_that_waits_while_a_shape_is_registered_is_bound_again(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.accept(given.batch("before", given.event("e0")))
    async with barrier.at(shapes, "INSERT"):
        registering = await barrier.stopped(store.register_shape("paid", PATHS))
        accepting = await barrier.waiting(other.accept(given.batch("b", given.event("e"))))
    shape = await registering
    with pytest.raises(StaleRoutingError):
        await accepting
    assert await raw.count(events) == 1
    routing = await other.routing()
    assert routing.shapes == (shape,)
    again = given.batch("b", given.event("e", "key"), version=routing.version)
    assert (await other.accept(again)).results[0].verdict is Verdict.UNMATCHED


async def test_of_two_processes_that_register_one_shape_at_once_both_get_the_same(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.accept(given.batch("before", given.event("e0")))
    async with barrier.at(shapes, "INSERT"):
        first = await barrier.stopped(store.register_shape("paid", PATHS))
        second = await barrier.waiting(other.register_shape("paid", PATHS))
    assert await first == await second
    assert await raw.count(shapes) == 1


async def test_a_wait_on_a_filling_shape_gets_the_older_event_first(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """The new event is hashed at once, the old one only by the backfill: its claim must not choose before."""
    await other.accept(given.batch("old", given.event("old")))
    shape = await store.register_shape("paid", PATHS)
    await store.flush([given.start("order")])
    wait = given.wait(2, "key", shape_id=shape.id)
    parking = given.step("order", 2, waits=[wait], release=Release.PARK)
    assert (await store.flush([parking])).results[0].applied is Applied.APPLIED

    version = (await other.routing()).version
    await other.accept(given.batch("new", given.event("new", "key"), version=version))
    for claimed in await store.claim(
        given.APP, [given.WORKFLOW], "a", 1
    ):  # whether it was woken is not promised
        loaded = (await store.load(["order"]))["order"]
        assert loaded.waits[0].event is None
        back = given.step("order", fence=claimed.fence, signals=loaded.signals, release=Release.PARK)
        assert (await store.flush([back])).results[0].applied is Applied.APPLIED

    apps = await other.backfill(shape.id, [(given.digest("key"), "", 1)], done=True)
    assert apps == {given.APP}
    (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
    (row,) = (await store.load(["order"]))["order"].waits
    assert row.event is not None
    assert row.event.event_id == "old"


@pytest.mark.parametrize("first", ["registration", "ready"])
async def test_a_wait_that_is_registered_while_its_shape_becomes_ready_is_woken_or_sees_the_event(
    store: Storage, other: Storage, barrier: Barrier, first: str
) -> None:
    await other.accept(given.batch("old", given.event("old")))
    shape = await store.register_shape("paid", PATHS)
    await store.flush([given.start("order")])
    wait = given.wait(2, "key", shape_id=shape.id)
    park = store.flush([given.step("order", 2, waits=[wait], release=Release.PARK)])
    done = other.backfill(shape.id, [(given.digest("key"), "", 1)], done=True)
    if first == "registration":
        async with barrier.at(waits, "INSERT"):
            parking = await barrier.stopped(park)
            filling = await barrier.waiting(done)
    else:
        async with barrier.at(shapes, "UPDATE"):
            filling = await barrier.stopped(done)
            parking = await barrier.waiting(park)
    applied = (await parking).results[0].applied
    apps = await filling
    row = await store.get_instance("order")
    assert row is not None
    if first == "registration":
        assert (applied, set(apps), row.state) == (Applied.APPLIED, {given.APP}, State.RUNNABLE)
    else:
        assert (applied, row.state) == (Applied.KEPT, State.RUNNING)
    (found,) = (await store.load(["order"]))["order"].waits
    assert found.event is not None


async def test_a_backfill_that_two_processes_do_at_once_while_events_come_in_misses_and_doubles_nothing(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """The real inbox and the real registry, through two stores, from an inbox that has seen the type before."""

    def made(name: str) -> CloudEvent:
        return CloudEvent(id=name, source="bank", type="paid", data=b'{"id": 1}')

    gateway = Inbox(other)
    for at in range(0, 1_200, 400):
        await gateway.deliver([made(f"old{number}") for number in range(at, at + 400)])

    async def keep_delivering() -> None:
        for number in range(60):
            await gateway.deliver([made(f"new{number}")])

    delivering = asyncio.create_task(keep_delivering())
    registered = await asyncio.gather(
        Shapes(store).ensure("paid", PATHS), Shapes(other).ensure("paid", PATHS)
    )
    await delivering
    assert registered[0].id == registered[1].id
    key = shape_hash("paid", {"data.id": 1})
    keyed = [row.seq for row in await raw.rows(event_keys.select().where(event_keys.c.hash == key))]
    assert sorted(keyed) == list(range(1, 1_261))
    (shape,) = (await store.routing()).shapes
    assert shape.ready
    await gateway.close()
