"""Accept order is commit order: no smaller number appears after a larger one was seen."""

import asyncio

from edda.storage.contract import Storage
from edda.storage.rows import Release, State
from edda.storage.schema import event_keys, events
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw


async def numbers(raw: Raw) -> list[int]:
    return [row.seq for row in await raw.rows(events.select().order_by(events.c.seq))]


async def test_a_number_that_was_given_but_not_committed_keeps_all_later_ones_back(
    store: Storage, other: Storage, raw: Raw, barrier: Barrier
) -> None:
    await store.accept(given.batch("before", given.event("e0")))
    async with barrier.at(event_keys, "INSERT"):
        first = await barrier.stopped(store.accept(given.batch("one", given.event("e1", "key"))))
        second = await barrier.waiting(other.accept(given.batch("two", given.event("e2"))))
        if barrier.stops:
            assert not second.done()
            assert await numbers(raw) == [1]
    assert (await first).results[0].seq == 2
    assert (await second).results[0].seq == 3
    times = [row.accepted_at for row in await raw.rows(events.select().order_by(events.c.seq))]
    assert times == sorted(times)


async def test_a_reader_that_follows_by_its_last_number_misses_nothing(
    store: Storage, other: Storage, raw: Raw
) -> None:
    batches, size = 25, 4

    async def accept(gateway: Storage, name: str) -> None:
        for number in range(batches):
            made = (given.event(f"{name}-{number}-{n}") for n in range(size))
            await gateway.accept(given.batch(f"{name}-{number}", *made))

    seen: list[str] = []
    written = asyncio.Event()

    async def follow() -> None:
        cursor = 0
        while True:
            last = written.is_set()
            later = events.select().where(events.c.seq > cursor).order_by(events.c.seq)
            for row in await raw.rows(later):
                seen.append(row.event_id)
                cursor = row.seq
            if last:
                return

    reading = asyncio.create_task(follow())
    await asyncio.gather(accept(store, "one"), accept(other, "two"))
    written.set()
    await reading
    assert len(seen) == len(set(seen)) == 2 * batches * size
    for name in ("one", "two"):
        mine = [one for one in seen if one.startswith(name)]
        assert mine == [f"{name}-{number}-{n}" for number in range(batches) for n in range(size)]


async def test_a_clock_that_is_set_back_does_not_turn_accept_times_around(
    store: Storage, other: Storage, raw: Raw
) -> None:
    """Two hosts, or a failover: an event that comes later is never older, or a deadline would judge it wrongly."""
    store.clock_offset_us = 5_000_000
    await store.accept(given.batch("ahead", given.event("e1")))
    await other.accept(given.batch("behind", given.event("e2")))
    first, second = await raw.rows(events.select().order_by(events.c.seq))
    assert first.accepted_at <= second.accepted_at


async def test_events_of_one_batch_reach_a_wait_in_the_batchs_order(store: Storage, other: Storage) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.park("order", 2, "key")])
    await other.accept(given.batch("b", *(given.event(f"e{n}", "key") for n in (2, 0, 1))))
    received = []
    seq, cursor = 2, 0
    for _ in range(3):
        row = await store.get_instance("order")
        assert row is not None
        assert row.state is State.RUNNABLE
        (claimed,) = await store.claim(given.APP, [given.WORKFLOW], "a", 1)
        loaded = (await store.load(["order"]))["order"]
        (wait,) = loaded.waits
        assert wait.event is not None
        received.append(wait.event.event_id)
        turn = given.step("order", seq + 1, fence=claimed.fence, signals=loaded.signals)
        seq, cursor = seq + 1, wait.event.seq
        turn.drop_waits, turn.waits = [wait.seq], [given.wait(seq, "key", cursor=cursor)]
        await store.flush([turn])
        await store.flush(
            [given.step("order", fence=claimed.fence, signals=loaded.signals, release=Release.YIELD)]
        )
    assert received == ["e2", "e0", "e1"]
