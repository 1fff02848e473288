"""An expired worker is declared dead first; then its instances go back, under a raised fence, once."""

from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.rows import Applied, Release, State, Turn
from edda.storage.schema import history, instances, workers
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

LATER_US = 2 * given.LEASE_US


async def beat(store: Storage, worker: str) -> bool:
    """Whether the worker is alive, as its lease thread hears it."""
    heart = store.heart()
    try:
        return (await heart.beat(worker, given.APP, given.LEASE_US)).alive
    finally:
        await heart.close()


async def owner(store: Storage) -> tuple[State, str | None, int]:
    row = await store.get_instance("order")
    assert row is not None
    return row.state, row.owner, row.fence


# ---------------------------------------------------------------------------------------------- heartbeats


async def test_a_heartbeat_that_comes_after_the_declaration_hears_that_it_is_dead(
    store: Storage, other: Storage
) -> None:
    await store.flush([given.start("order")])
    other.clock_offset_us = LATER_US
    assert (await other.requeue_expired())[1] == 1
    assert not await beat(store, "a")
    assert not await beat(store, "a")
    assert await owner(store) == (State.RUNNABLE, None, 2)
    assert (await store.flush([given.step("order", 2)])).results[0].applied is Applied.LOST
    assert await store.claim(given.APP, [given.WORKFLOW], "a", 1) == []


async def test_a_heartbeat_that_waits_for_the_declaration_to_commit_does_not_bring_its_worker_back(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """Else the old owner lives, its instances are runnable, and both parties believe they are theirs."""
    await store.flush([given.start("order")])
    other.clock_offset_us = LATER_US
    async with barrier.at(instances, "UPDATE", "NEW.owner IS NULL"):
        requeuing = await barrier.stopped(other.requeue_expired())
        beating = await barrier.waiting(beat(store, "a"))
    assert (await requeuing)[1] == 1
    assert not await beating
    assert (await store.flush([given.step("order", 2)])).results[0].applied is Applied.LOST


async def test_a_heartbeat_that_commits_first_keeps_everything_its_worker_has(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """The requeue has read the expired lease already, and waits for the row that renews it."""
    await store.flush([given.start("order")])
    store.clock_offset_us = other.clock_offset_us = LATER_US
    async with barrier.at(workers, "UPDATE", "NEW.id = 'a' AND NEW.expires_at > OLD.expires_at"):
        beating = await barrier.stopped(beat(store, "a"))
        requeuing = await barrier.waiting(other.requeue_expired())
    assert await beating
    assert (await requeuing)[1] == 0
    assert await owner(store) == (State.RUNNING, "a", 1)
    assert (await store.flush([given.step("order", 2)])).results[0].applied is Applied.APPLIED


async def test_an_unknown_worker_is_told_that_it_is_dead(store: Storage) -> None:
    assert not await beat(store, "never registered")


async def test_a_dead_worker_that_registers_again_under_its_old_name_stays_dead(
    store: Storage, other: Storage
) -> None:
    """A name that came back to life would own again what it owned before: new life, new name."""
    other.clock_offset_us = LATER_US
    await other.requeue_expired()
    await store.register_worker("a", given.APP, LATER_US)
    assert not await beat(store, "a")


# ---------------------------------------------------------------------------------------------- claims of the dead


async def test_a_worker_that_is_declared_dead_while_it_claims_owns_nothing_for_ever(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.insert_instances([given.instance("order")])
    other.clock_offset_us = LATER_US
    async with barrier.at(workers, "UPDATE", "NEW.id = 'a'"):
        requeuing = await barrier.stopped(other.requeue_expired())
        claiming = await barrier.waiting(store.claim(given.APP, [given.WORKFLOW], "a", 1))
    await requeuing
    claimed = await claiming
    if claimed:  # before the declaration was committed: then whoever looks next gives it back
        await other.requeue_expired()
    assert await owner(store) == (State.RUNNABLE, None, 2 if claimed else 0)


async def test_what_a_worker_claims_while_the_requeue_looks_for_its_instances_is_given_back(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.insert_instances([given.instance("order")])
    other.clock_offset_us = LATER_US
    async with barrier.at(instances, "UPDATE", "NEW.owner = 'a'"):
        claiming = await barrier.stopped(store.claim(given.APP, [given.WORKFLOW], "a", 1))
        requeuing = await barrier.waiting(other.requeue_expired())
    (claimed,) = await claiming
    if (await requeuing)[1] == 0:
        await other.requeue_expired()
    assert await owner(store) == (State.RUNNABLE, None, 2)
    lost = given.step("order", 1, fence=claimed.fence)
    assert (await store.flush([lost])).results[0].applied is Applied.LOST


# ---------------------------------------------------------------------------------------------- re-queueing


async def test_two_processes_that_requeue_at_once_give_back_once(
    store: Storage, other: Storage, another_store: Callable[..., Awaitable[Storage]], barrier: Barrier
) -> None:
    third = await another_store()
    await store.flush([given.start("order")])
    other.clock_offset_us = third.clock_offset_us = LATER_US
    async with barrier.at(instances, "UPDATE", "NEW.owner IS NULL"):
        first = await barrier.stopped(other.requeue_expired())
        second = await barrier.waiting(third.requeue_expired())
    assert (await first)[1] + (await second)[1] == 1
    row = await store.get_instance("order")
    assert row is not None
    assert (row.fence, row.recoveries) == (2, 1)


async def test_a_second_requeue_does_not_take_what_was_claimed_after_the_first(
    store: Storage, other: Storage, another_store: Callable[..., Awaitable[Storage]], barrier: Barrier
) -> None:
    """It has read "owned by the dead", and waits for the row; by then the row is somebody else's."""
    third = await another_store("c")
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, release=Release.YIELD)])
    third.clock_offset_us = LATER_US
    await other.register_worker("b", given.APP, 10 * given.LEASE_US)
    async with barrier.at(instances, "UPDATE", "NEW.owner = 'b'"):
        claiming = await barrier.stopped(other.claim(given.APP, [given.WORKFLOW], "b", 1))
        requeuing = await barrier.waiting(third.requeue_expired())
    (claimed,) = await claiming
    assert (await requeuing)[1] == 0
    assert await owner(store) == (State.RUNNING, "b", claimed.fence)


async def test_a_dead_workers_many_instances_go_back_in_chunks_and_each_once(
    store: Storage, other: Storage
) -> None:
    names = [f"i{number}" for number in range(25)]
    await store.flush([given.start(name) for name in names])
    other.clock_offset_us = LATER_US
    await other.register_worker("b-later", given.APP, given.LEASE_US)
    chunks = []
    while True:
        apps, number = await other.requeue_expired(10)
        chunks.append(number)
        if number < 10:
            break
        assert apps == {given.APP}
        # In between: what has gone back is claimed by others, the zombie's turns on it are lost.
        claimed = {
            one.id: one.fence for one in await other.claim(given.APP, [given.WORKFLOW], "b-later", 100)
        }
        assert len(claimed) == 10
        results = (await store.flush([given.step(name, 2) for name in claimed])).results
        assert {result.applied for result in results} == {Applied.LOST}
        turns = [given.step(name, 2, owner="b-later", fence=fence) for name, fence in claimed.items()]
        results = (await other.flush(turns)).results
        assert {result.applied for result in results} == {Applied.APPLIED}
    assert chunks == [10, 10, 5]
    rows = [await store.get_instance(name) for name in names]
    assert sorted(row.fence for row in rows if row is not None) == [2] * 5 + [3] * 20
    assert {row.recoveries for row in rows if row is not None} == {1}


async def test_a_retirement_waits_for_the_workers_last_flush_and_gives_back_at_once(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    async with barrier.at(history, "INSERT", "NEW.seq = 2"):
        flushing = await barrier.stopped(store.flush([given.step("order", 2)]))
        retiring = await barrier.waiting(store.retire_worker("a"))
    assert (await flushing).results[0].applied is Applied.APPLIED
    assert await retiring == 1
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b", 1)
    assert (claimed.fence, claimed.recoveries) == (3, 0)
    assert [record.seq for record in (await other.load(["order"]))["order"].history] == [1, 2]
    assert (await store.flush([given.step("order", 3)])).results[0].applied is Applied.LOST


async def test_recoveries_count_requeues_since_the_last_applied_turn(store: Storage, other: Storage) -> None:
    """Only a dead owner counts: neither a clean shutdown nor a park does."""
    await store.flush([given.start("order")])
    seen, fence = [], 1
    for number in range(1, 4):
        other.clock_offset_us = number * LATER_US
        await other.requeue_expired()
        await other.register_worker(f"b{number}", given.APP, given.LEASE_US)
        (claimed,) = await other.claim(given.APP, [given.WORKFLOW], f"b{number}", 1)
        seen.append(claimed.recoveries)
        fence = claimed.fence
    assert seen == [1, 2, 3]
    turn = given.step("order", 2, owner="b3", fence=fence, release=Release.YIELD)
    turn.reset_recoveries = True
    assert (await other.flush([turn])).results[0].applied is Applied.APPLIED
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b3", 1)
    assert claimed.recoveries == 0
    await other.retire_worker("b3")
    await other.register_worker("b4", given.APP, given.LEASE_US)
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "b4", 1)
    assert claimed.recoveries == 0


# ---------------------------------------------------------------------------------------------- the fence

Change = Callable[[Storage, Storage], Awaitable[None]]


async def declared_dead(_store: Storage, other: Storage) -> None:
    other.clock_offset_us = LATER_US
    assert (await other.requeue_expired())[1] == 1


async def retired(store: Storage, _other: Storage) -> None:
    assert await store.retire_worker("a") == 1


async def yielded(store: Storage, _other: Storage) -> None:
    await store.flush([given.step("order", 2, release=Release.YIELD)])


async def parked_and_woken(store: Storage, other: Storage) -> None:
    await store.flush([given.park("order", 2, "key")])
    await other.accept(given.batch("b", given.event("e", "key")))


async def parked_and_timed_out(store: Storage, other: Storage) -> None:
    await store.flush([given.step("order", 2, waits=[given.timer(2, 1_000)], release=Release.PARK)])
    other.clock_offset_us = 1_000_000
    assert (await other.fire_timers())[1] == 1


async def paused_and_resumed(store: Storage, other: Storage) -> None:
    pause = Turn("order", "a", 1, 0, release=Release.END, end_state=State.PAUSED, error=b'"code"')
    assert (await store.flush([pause])).results[0].applied is Applied.APPLIED
    assert await other.resume("order") == given.APP


CHANGES: list[Change] = [
    declared_dead,
    retired,
    yielded,
    parked_and_woken,
    parked_and_timed_out,
    paused_and_resumed,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_the_fence_rises_at_every_change_of_owner(
    store: Storage, other: Storage, raw: Raw, change: Change
) -> None:
    await store.flush([given.start("order")])
    await change(store, other)
    between = await raw.scalar(sa.select(instances.c.fence))
    other.clock_offset_us = max(other.clock_offset_us, 1_000_000)
    await other.register_worker("next", given.APP, given.LEASE_US)
    (claimed,) = await other.claim(given.APP, [given.WORKFLOW], "next", 1)
    assert claimed.fence == between + 1
    assert between >= 1
    for release in (Release.KEEP, Release.PARK, Release.END, Release.YIELD):
        old = given.step("order", 9, release=release)
        assert (await store.flush([old])).results[0].applied is Applied.LOST
    # Nor by its number alone, nor by its name alone.
    for old in (given.step("order", 9, fence=claimed.fence), given.step("order", 9, owner="next")):
        assert (await store.flush([old])).results[0].applied is Applied.LOST
    mine = given.step("order", 9, owner="next", fence=claimed.fence)
    assert (await other.flush([mine])).results[0].applied is Applied.APPLIED
