"""Only the owner writes history, under a fence that is compared on the locked row."""

import asyncio
from dataclasses import replace

import pytest

from edda.storage.contract import Storage
from edda.storage.rows import Applied, NewInstance, Release, State
from edda.storage.schema import history, instances, outbox, waits
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw


async def take_away(other: Storage, *ids: str) -> None:
    """Worker "b" declares "a" dead, re-queues what it had, and claims it."""
    other.clock_offset_us = 2 * given.LEASE_US
    await other.register_worker("b-later", given.APP, given.LEASE_US)
    await other.requeue_expired()
    claimed = await other.claim(given.APP, [given.WORKFLOW], "b-later", 100)
    assert sorted(one.id for one in claimed) == sorted(ids)


@pytest.mark.parametrize("release", list(Release))
async def test_a_zombies_turn_after_requeue_and_claim_writes_nothing(
    store: Storage, other: Storage, raw: Raw, release: Release
) -> None:
    await store.flush([given.start("order")])
    await take_away(other, "order")
    before = await raw.rows(instances.select())

    zombie = given.step("order", 2, waits=[given.wait(2, "key"), given.timer(3, 0)], release=release)
    zombie.outbox.append(given.message("m"))
    zombie.children.append(given.instance("child"))
    zombie.reset_recoveries = True
    assert (await store.flush([zombie])).results[0].applied is Applied.LOST

    assert await raw.rows(instances.select()) == before
    assert await raw.count(history) == 1
    assert await raw.count(waits) == await raw.count(outbox) == 0


async def test_a_zombie_in_a_shared_flush_does_not_fail_its_neighbours(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.flush([given.start("stolen")])
    await take_away(other, "stolen")
    await store.register_worker("a-again", given.APP, given.LEASE_US)
    await store.flush([given.start("mine", owner="a-again")])
    results = (
        await store.flush(
            [
                given.step("stolen", 2),
                given.step("mine", 2, owner="a-again"),
                given.start("new", owner="a-again"),
                given.step("no such instance", 2),
            ]
        )
    ).results
    assert [result.applied for result in results] == [
        Applied.LOST,
        Applied.APPLIED,
        Applied.APPLIED,
        Applied.LOST,
    ]
    assert await raw.count(history) == 4


async def test_a_change_of_owner_between_a_flushs_snapshot_and_its_insert_fences_it(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.flush([given.start("order"), given.start("neighbour")])
    other.clock_offset_us = 2 * given.LEASE_US
    async with barrier.at(instances, "UPDATE", "NEW.id = 'order' AND NEW.owner IS NULL"):
        requeuing = await barrier.stopped(other.requeue_expired())
        # The old fence is all that this flush can see, and it waits for the row that holds the new one.
        flushing = await barrier.waiting(store.flush([given.step("order", 2), given.step("neighbour", 2)]))
    await requeuing
    results = (await flushing).results
    assert {result.applied for result in results} == {Applied.LOST}
    assert await raw.count(history) == 2


@pytest.mark.parametrize("release", [Release.KEEP, Release.PARK, Release.END])
async def test_a_claim_that_commits_while_the_zombies_flush_waits_for_the_row_fences_it(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier, release: Release
) -> None:
    # Given back with fence 1, still in the row when "b" claims it: a turn that releases would pass for applied.
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, release=Release.YIELD)])
    async with barrier.at(instances, "UPDATE", "NEW.owner = 'b'"):
        claiming = await barrier.stopped(other.claim(given.APP, [given.WORKFLOW], "b", 1))
        flushing = await barrier.waiting(store.flush([given.step("order", 3, release=release)]))
    (claimed,) = await claiming
    assert (await flushing).results[0].applied is Applied.LOST
    assert await raw.count(history) == 2

    theirs = given.step("order", 3, owner="b", fence=claimed.fence, payload=b"b's")
    assert (await other.flush([theirs])).results[0].applied is Applied.APPLIED
    assert [record.payload for record in await store.get_history("order")] == [b"1", b"1", b"b's"]


async def test_a_requeue_waits_for_the_owners_flush_and_the_next_owner_loads_it(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    other.clock_offset_us = 2 * given.LEASE_US
    await other.register_worker("b-later", given.APP, given.LEASE_US)
    async with barrier.at(history, "INSERT", "NEW.seq = 2"):
        flushing = await barrier.stopped(store.flush([given.step("order", 2)]))
        requeuing = await barrier.waiting(other.requeue_expired())
    assert (await flushing).results[0].applied is Applied.APPLIED
    assert (await requeuing)[1] == 1
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b-later", 1)
    loaded = (await other.load(["order"]))["order"]
    assert [record.seq for record in loaded.history] == [1, 2]
    assert (await store.flush([given.step("order", 3)])).results[0].applied is Applied.LOST
    mine = given.step("order", 3, owner="b-later", fence=claimed.fence)
    assert (await other.flush([mine])).results[0].applied is Applied.APPLIED


async def test_a_record_that_another_owner_has_written_is_neither_overwritten_nor_taken_for_ones_own(
    store: Storage, other: Storage, raw: Raw
) -> None:
    await store.flush([given.start("order")])
    await take_away(other, "order")
    fence = await raw.scalar(instances.select().with_only_columns(instances.c.fence))
    await other.flush([given.step("order", 2, owner="b-later", fence=fence, payload=b"theirs")])
    # Whoever owns it later and comes to the same command with other results has a history it has not read.
    claimed_again = fence + 1
    await raw.execute(instances.update().values(owner="a", fence=claimed_again))
    turn = given.step("order", 2, fence=claimed_again, payload=b"ours")
    turn.outbox.append(given.message("m"))
    assert (await store.flush([turn])).results[0].applied is Applied.LOST
    assert (await store.get_history("order"))[1].payload == b"theirs"
    assert await raw.count(outbox) == 0


async def test_the_loser_of_two_starts_with_one_id_writes_no_history(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    async with barrier.at(history, "INSERT", "NEW.seq = 1"):
        first = await barrier.stopped(store.flush([given.start("order")]))
        second = await barrier.waiting(other.flush([given.start("order", owner="b"), given.start("else")]))
    assert (await first).results[0].applied is Applied.APPLIED
    assert [result.applied for result in (await second).results] == [Applied.EXISTS, Applied.APPLIED]
    assert await raw.count(history) == 2
    row = await store.get_instance("order")
    assert row is not None
    assert (row.owner, row.fence) == ("a", 1)


async def test_an_instance_passed_back_and_forth_has_one_unbroken_history(
    store: Storage, other: Storage
) -> None:
    """Each claimer finds all that the owners before it have written: what it claims it also sees."""
    await store.insert_instances([NewInstance("ball", given.APP, given.WORKFLOW, b"{}")])
    throws = 60

    async def play(player: Storage, name: str) -> None:
        while True:
            for claimed in await player.claim(given.APP, [given.WORKFLOW], name, 1):
                loaded = (await player.load([claimed.id]))[claimed.id]
                seqs = [record.seq for record in loaded.history]
                assert seqs == list(range(1, claimed.fence))
                turn = given.step("ball", claimed.fence, owner=name, fence=claimed.fence)
                turn.release = Release.YIELD
                if claimed.fence == throws:
                    turn.release, turn.end_state = Release.END, State.COMPLETED
                stale = replace(turn, fence=claimed.fence - 1, release=Release.KEEP)
                lost, applied = await player.flush([stale]), await player.flush([turn])
                assert lost.results[0].applied is Applied.LOST
                assert applied.results[0].applied is Applied.APPLIED
            row = await player.get_instance("ball")
            assert row is not None
            if row.state is State.COMPLETED:
                return

    async with asyncio.TaskGroup() as group:
        group.create_task(play(store, "a"))
        group.create_task(play(other, "b"))
    assert [record.seq for record in await store.get_history("ball")] == list(range(1, throws + 1))
