"""One event wakes many waits, in chunks and repeatably; in which order they are marked decides nothing."""

import asyncio
from collections.abc import Sequence

import pytest

from edda.storage.contract import Storage
from edda.storage.mysql import accept as mysql
from edda.storage.postgresql import accept as postgresql
from edda.storage.rows import LEFT_AFTER_US, Applied, State, Verdict
from edda.storage.schema import instances, unmarked, waits
from edda.storage.sqlite import accept as sqlite
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw

#: More than accept marks in its own transaction.
MANY = 1_100


async def mark_the_rest(store: Storage, hashes: Sequence[bytes]) -> None:
    more = bool(hashes)
    while more:
        _, more = await store.mark_due(hashes, 100)


async def test_a_second_event_that_is_faster_than_the_chunks_of_the_first_overtakes_it_nowhere(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """The chunk that comes late finds a wait that is due already; its claim takes the first event all the same."""
    names = await given.park_many(store, MANY)
    first = await other.accept(given.batch("one", given.event("e1", "key")))
    assert first.results[0].verdict is Verdict.ACCEPTED
    assert first.more_hashes == (given.digest("key"),)
    second = await other.accept(given.batch("two", given.event("e2", "key")))
    assert second.results[0].waits > 0
    await asyncio.gather(mark_the_rest(store, first.more_hashes), mark_the_rest(other, first.more_hashes))
    assert {row.state for row in await raw.rows(instances.select())} == {State.RUNNABLE}
    received: dict[str, str] = {}
    while claimed := await store.claim(given.APP, [given.WORKFLOW], "a", 500):
        for name, loaded in (await store.load([one.id for one in claimed])).items():
            (wait,) = loaded.waits
            assert wait.event is not None
            received[name] = wait.event.event_id
    assert received == dict.fromkeys(names, "e1")


async def test_an_owner_that_has_gone_on_to_its_next_wait_is_not_woken_by_a_late_chunk_of_the_last_event(
    store: Storage, other: Storage
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.park("order", 2, "key")])
    (result,) = (await other.accept(given.batch("b", given.event("e", "key")))).results
    (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
    turn = given.park("order", 3, "key", fence=claimed.fence, signals=claimed.signals, cursor=result.seq)
    turn.drop_waits = [2]
    assert (await store.flush([turn])).results[0].applied is Applied.APPLIED
    assert await other.mark_due([given.digest("key")]) == (frozenset(), False)
    row = await store.get_instance("order")
    assert row is not None
    assert (row.state, row.signals) == (State.WAITING, claimed.signals)


async def test_a_chunk_that_meets_a_registration_marks_what_it_registers_or_the_registration_sees_the_event(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await other.accept(given.batch("b", given.event("e", "key")))
    async with barrier.at(waits, "INSERT"):
        parking = await barrier.stopped(store.flush([given.park("order", 2, "key")]))
        marking = await barrier.waiting(other.mark_due([given.digest("key")]))
    assert (await parking).results[0].applied is Applied.KEPT
    await marking
    (wait,) = (await store.load(["order"]))["order"].waits
    assert wait.due
    assert wait.event is not None


async def test_what_an_accept_leaves_while_others_mark_what_the_one_before_it_left_is_not_forgotten(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who marks has looked for waits before the second event came: all that it may forget is what it knew then."""
    for module in (mysql, postgresql, sqlite):
        monkeypatch.setattr(module, "FIRST_WAITS", 1)
    key = [given.digest("key")]
    # By an index, accept marks the first ones: later those that nobody has locked.
    for name in ("y", "z"):
        await store.flush([given.start(name)])
        await store.flush([given.park(name, 2, "key")])
    assert (await store.accept(given.batch("1", given.event("e1", "key")))).more_hashes == (*key,)
    async with barrier.at(instances, "UPDATE", "NEW.id = 'z'"):
        marking = await barrier.stopped(store.mark_due(key))
        for name in ("a", "b"):
            await other.flush([given.start(name)])
            await other.flush([given.park(name, 2, "key", cursor=1)])
        accepted = await other.accept(given.batch("2", given.event("e2", "key")))
        assert accepted.more_hashes == (*key,)
    await marking
    assert [row.seq for row in await raw.rows(unmarked.select())] == [2]
    assert (await store.load(["b"]))["b"].waits[0].due is False
    other.clock_offset_us = LEFT_AFTER_US
    assert await other.left_unmarked() == key
    assert await other.mark_due(key) == (frozenset({given.APP}), False)
    assert await raw.count(unmarked) == 0
    assert (await store.load(["b"]))["b"].waits[0].due


async def test_two_that_mark_the_same_waits_at_once_both_succeed_and_nothing_is_signalled_for_nothing(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.wait(2, "key"), given.timer(3, 1_000)])])
    await other.accept(given.batch("b", given.event("e", "key")))
    await raw.execute(waits.update().values(due=False))
    signals = await raw.scalar(instances.select().with_only_columns(instances.c.signals))
    async with barrier.at(instances, "UPDATE", f"NEW.signals > {signals}"):
        first = await barrier.stopped(store.mark_due([given.digest("key")]))
        second = await barrier.waiting(other.mark_due([given.digest("key")]))
    assert (await first)[1] is (await second)[1] is False
    assert (await store.load(["order"]))["order"].waits[0].due
    assert await raw.scalar(instances.select().with_only_columns(instances.c.signals)) == signals + 1


# ---------------------------------------------------------------------------------------------- timers


async def test_two_processes_that_fire_one_timer_at_once_fire_it_once(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.timer(2, 1_000)])])
    store.clock_offset_us = other.clock_offset_us = 1_000_000
    async with barrier.at(instances, "UPDATE", "NEW.signals = 1"):
        first = await barrier.stopped(store.fire_timers())
        second = await barrier.waiting(other.fire_timers())
    assert (await first)[1] + (await second)[1] == 1
    row = await store.get_instance("order")
    assert row is not None
    assert row.signals == 1


async def test_a_timer_that_its_owner_drops_while_it_fires_neither_comes_back_nor_stops_anybody(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.timer(2, 1_000)])])
    other.clock_offset_us = 1_000_000
    async with barrier.at(waits, "DELETE"):
        turn = given.step("order", 3)
        turn.drop_waits = [2]
        dropping = await barrier.stopped(store.flush([turn]))
        firing = await barrier.waiting(other.fire_timers())
    assert (await dropping).results[0].applied is Applied.APPLIED
    await firing
    assert await raw.count(waits) == 0
    assert (await other.fire_timers())[1] == 0


async def test_a_timer_that_is_replaced_while_it_fires_fires_again_at_its_new_time(
    store: Storage, other: Storage, barrier: Barrier
) -> None:
    """A retry's next backoff under the same number: what is left over of the old one must not end it."""
    await store.flush([given.start("order")])
    await store.flush([given.step("order", 2, waits=[given.timer(2, 1_000)])])
    other.clock_offset_us = 1_000_000
    async with barrier.at(instances, "UPDATE", "NEW.signals = 1"):
        firing = await barrier.stopped(other.fire_timers())
        again = given.step("order", 3, waits=[given.timer(2, given.LEASE_US)])
        replacing = await barrier.waiting(store.flush([again]))
    assert (await firing)[1] == 1
    assert (await replacing).results[0].applied is Applied.APPLIED
    (wait,) = (await store.load(["order"]))["order"].waits
    assert not wait.due
    assert (await other.fire_timers())[1] == 0
    other.clock_offset_us = 2 * given.LEASE_US
    assert (await other.fire_timers())[1] == 1


@pytest.mark.parametrize("party", ["timer", "event"])
async def test_of_several_waits_of_one_instance_that_fire_at_once_none_is_forgotten(
    store: Storage, other: Storage, barrier: Barrier, party: str
) -> None:
    """``wait_any`` and ``gather``: one signal more for each party, every wait marked; the owner chooses."""
    await store.flush([given.start("order")])
    three = [given.wait(2, "one"), given.wait(3, "two"), given.timer(4, 1_000)]
    await store.flush([given.step("order", 2, waits=three)])
    other.clock_offset_us = 1_000_000
    one = store.accept(given.batch("1", given.event("e1", "one")))
    two = other.accept(given.batch("2", given.event("e2", "two")))
    timer = other.fire_timers()
    async with barrier.at(instances, "UPDATE", "NEW.signals = 1"):
        first = await barrier.stopped(timer if party == "timer" else one)
        rest = [await barrier.waiting(one if party == "timer" else timer)]
        rest.append(asyncio.create_task(two))
    await asyncio.gather(first, *rest)
    loaded = (await store.load(["order"]))["order"]
    assert loaded.signals == 3
    assert [wait.due for wait in loaded.waits] == [True] * 3
    assert [wait.event.event_id for wait in loaded.waits if wait.event] == ["e1", "e2"]
