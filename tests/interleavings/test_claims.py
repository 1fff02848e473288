"""A claim is one party's: no instance is owned twice, and no news are lost to whoever is claiming."""

import asyncio

import pytest
import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.rows import Applied, NewInstance, Release, State
from edda.storage.schema import instances
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw
from tests.support.databases import Database
from tests.support.processes import spawn


async def test_two_processes_that_claim_at_once_own_no_instance_twice(
    store: Storage, database: Database
) -> None:
    names = [f"i{number:03}" for number in range(150)]
    with (
        spawn("tests.interleavings.programs:claim_everything", database.url, "x", "4") as one,
        spawn("tests.interleavings.programs:claim_everything", database.url, "y", "7") as two,
    ):
        await asyncio.gather(one.line("^ready$"), two.line("^ready$"))
        await store.insert_instances([given.instance(name) for name in names])
        await store.insert_instances([NewInstance("go", "another app", given.WORKFLOW, b"{}")])
        await asyncio.gather(one.line("^done$", 50), two.line("^done$", 50))
        told = [
            word
            for process in (one, two)
            for line in process.output.splitlines()
            if line.startswith("claimed ")
            for word in line.split()[1:]
        ]
    assert sorted(told) == [f"{name}:1" for name in names]


async def test_two_claimers_share_what_there_is_and_take_no_more_than_they_asked_for(
    store: Storage, other: Storage
) -> None:
    names = {f"i{number:03}" for number in range(90)}
    await store.insert_instances([given.instance(name) for name in names])
    seen: list[str] = []
    while True:
        rounds = await asyncio.gather(
            store.claim(given.APP, [given.WORKFLOW], "a", 7),
            other.claim(given.APP, [given.WORKFLOW], "b", 4),
            store.claim(given.APP, [given.WORKFLOW], "a", 3),
        )
        assert [len(claimed) <= limit for claimed, limit in zip(rounds, (7, 4, 3), strict=True)] == [True] * 3
        if not any(rounds):
            break
        seen += [one.id for claimed in rounds for one in claimed]
    assert len(seen) == len(names)
    assert set(seen) == names


async def test_a_claim_leaves_alone_what_another_is_claiming(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.insert_instances([given.instance(f"i{number}") for number in range(6)])
    async with barrier.at(instances, "UPDATE", "NEW.owner = 'a'"):
        first = await barrier.stopped(store.claim(given.APP, [given.WORKFLOW], "a", 4))
        theirs = await other.claim(given.APP, [given.WORKFLOW], "b", 4)
    claimed = [*await first, *theirs]
    assert max(len(claimed) - len(theirs), len(theirs)) <= 4
    claimed += await other.claim(given.APP, [given.WORKFLOW], "b", 4)
    assert sorted(one.id for one in claimed) == [f"i{number}" for number in range(6)]


async def test_an_event_that_comes_while_its_instance_is_being_claimed_reaches_the_new_owner(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.wait(2, "one"), given.wait(3, "two")])])
    await store.flush([given.step("order", release=Release.PARK)])
    await other.accept(given.batch("first", given.event("e1", "one")))
    async with barrier.at(instances, "UPDATE", "NEW.owner = 'a'"):
        claiming = await barrier.stopped(store.claim(given.APP, [given.WORKFLOW], "a", 1))
        accepting = await barrier.waiting(other.accept(given.batch("second", given.event("e2", "two"))))
    (claimed,) = await claiming
    assert claimed.signals == 1
    assert given.APP in (await accepting).woken_apps
    # It acts on what its claim said, and cannot park on the rest without having heard the news.
    parking = given.step("order", 3, fence=claimed.fence, signals=claimed.signals, release=Release.PARK)
    parking.drop_waits = [2]
    assert (await store.flush([parking])).results[0].applied is Applied.KEPT
    loaded = (await store.load(["order"]))["order"]
    assert [wait.event.event_id for wait in loaded.waits if wait.event] == ["e2"]


async def test_an_instance_that_is_being_woken_is_claimed_when_it_is_awake_and_not_before(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.park("order", 2, "key")])
    async with barrier.at(instances, "UPDATE", "NEW.state = 'runnable'"):
        accepting = await barrier.stopped(other.accept(given.batch("b", given.event("e", "key"))))
        if barrier.stops:
            assert await store.claim(given.APP, [given.WORKFLOW], "a", 1) == []
    await accepting
    (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
    assert claimed.signals == 1
    assert (await store.load(["order"]))["order"].waits[0].event is not None


@pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)
async def test_many_locked_candidates_do_not_hide_the_free_ones_behind_them(store: Storage, raw: Raw) -> None:
    """A limit that counts what is skipped would find nothing, though there is work."""
    await store.insert_instances([given.instance(f"held{number:02}") for number in range(30)])
    async with raw.transaction() as user:
        await user.execute(sa.select(instances.c.id).with_for_update())
        await store.insert_instances([given.instance(f"free{number}") for number in range(3)])
        claimed = await store.claim(given.APP, [given.WORKFLOW], "a", 2)
        assert [one.id for one in claimed] == ["free0", "free1"]
    assert len(await store.claim(given.APP, [given.WORKFLOW], "a", 100)) == 31


async def test_a_paused_instance_is_not_claimed_by_whoever_was_waiting_for_its_row(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.insert_instances([given.instance("order")])
    async with barrier.at(instances, "UPDATE", "NEW.state = 'paused'"):

        async def pause() -> None:
            await raw.execute("UPDATE edda_instances SET state = 'paused', fence = fence + 1")

        pausing = await barrier.stopped(pause())
        claiming = await barrier.waiting(other.claim(given.APP, [given.WORKFLOW], "b", 1))
    await pausing
    assert await claiming == []
    row = await store.get_instance("order")
    assert row is not None
    assert (row.state, row.owner) == (State.PAUSED, None)
